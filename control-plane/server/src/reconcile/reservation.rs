//! Capacity reservations: room that is kept for a tenant until an end.

use std::collections::{BTreeMap, HashMap};

use longship_proto::Failure;
use longship_proto::control::v1::CapacityReservation;
use longship_scheduler::{Booking, BookingError, BookingId, Declined, PodTemplate, Zones};
use longship_store::{Expect, Transaction};
use prost::Message;
use uuid::Uuid;

use super::command::Answer;
use super::create::refusal;
use super::plan::refuse;
use super::state::{Now, State, time};
use crate::records::{self, ReservationRecord};

/// Disks of each pod that a reservation has room for: an image and the scratch.
const DISKS: u32 = 2;

/// All capacity reservations, by tenant and name.
#[derive(Debug, Default)]
pub(crate) struct Reservations {
    by_name: BTreeMap<(String, String), ReservationRecord>,
    by_id: HashMap<BookingId, (String, String)>,
}

impl Reservations {
    fn insert(&mut self, id: BookingId, record: ReservationRecord) {
        let name = (record.tenant.clone(), record.name.clone());
        self.by_id.insert(id, name.clone());
        self.by_name.insert(name, record);
    }

    fn remove(&mut self, id: BookingId) -> Option<ReservationRecord> {
        let name = self.by_id.remove(&id)?;
        self.by_name.remove(&name)
    }

    /// Whether a tenant has any.
    pub(super) fn has_of(&self, tenant: &str) -> bool {
        let from = (tenant.to_owned(), String::new());
        let first = self.by_name.range(from..).next();
        first.is_some_and(|((owner, _), _)| owner == tenant)
    }

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }
}

impl State {
    /// Keeps room for a tenant: all of it, or none.
    pub(super) fn reserve(
        &mut self,
        now: Now,
        wanted: CapacityReservation,
        answer: Answer<CapacityReservation>,
    ) {
        let id = Uuid::new_v4();
        match self.try_reserve(now, id, wanted) {
            Ok(view) => self.plan.reply(true, answer, move |_| view),
            Err(failure) => refuse(answer, failure),
        }
    }

    pub(super) fn try_reserve(
        &mut self,
        now: Now,
        id: Uuid,
        wanted: CapacityReservation,
    ) -> Result<CapacityReservation, Failure> {
        let record = ReservationRecord {
            uid: id.to_string(),
            tenant: wanted.tenant,
            name: wanted.name,
            flavor: wanted.flavor,
            count: wanted.count,
            zones: wanted.zones,
            ends_us: wanted.ends_us,
        };
        let name = (record.tenant.clone(), record.name.clone());
        if self.reservations.by_name.contains_key(&name) {
            return Err(Failure {
                field: "reservation.name".into(),
                ..Failure::conflict(format!("there is a capacity reservation `{}`", name.1))
            });
        }
        self.check_reserved(&record)?;
        let id = BookingId(id.as_u128());
        let booked = self.fleet.book(now.time(), booking(id, &record));
        booked.map_err(|error| match error {
            BookingError::Void => Failure::invalid(
                "reservation.ends_us",
                "a capacity reservation must keep something and end later",
            ),
            BookingError::Declined {
                declined: Declined::Refused(refused),
                ..
            } => refusal(refused),
            error => Failure {
                field: "reservation.count".into(),
                ..Failure::exhausted(error.to_string())
            },
        })?;
        let bytes = record.encode_to_vec();
        let transaction = Transaction::new();
        self.plan
            .write(transaction.put(records::RESERVATION, &key(&record), bytes, Expect::Any));
        let view = self.view_reservation(id, &record);
        self.reservations.insert(id, record);
        Ok(view)
    }

    /// Checks that the flavor and the zones exist.
    fn check_reserved(&self, record: &ReservationRecord) -> Result<(), Failure> {
        let template = PodTemplate {
            tenant: record.tenant.clone(),
            flavors: vec![record.flavor.clone()],
            zones: zones(&record.zones),
            ..PodTemplate::default()
        };
        let checked = self.fleet.check(&template).map_err(refusal);
        checked.map_err(|failure| {
            let field = failure.field.replacen("spec.", "reservation.", 1);
            let field = field.replace("reservation.zone", "reservation.zones");
            Failure { field, ..failure }
        })
    }

    /// A tenant's capacity reservations, or everybody's.
    pub(super) fn list_reservations(
        &mut self,
        tenant: Option<&str>,
        answer: Answer<Vec<CapacityReservation>>,
    ) {
        let all = self.reservations.by_id.iter();
        let found = all.filter(|(_, (owner, _))| tenant.is_none_or(|tenant| tenant == owner));
        let mut views: Vec<CapacityReservation> = found
            .filter_map(|(id, name)| {
                let record = self.reservations.by_name.get(name)?;
                Some(self.view_reservation(*id, record))
            })
            .collect();
        views.sort_by(|a, b| (&a.tenant, &a.name).cmp(&(&b.tenant, &b.name)));
        self.plan.reply(false, answer, move |_| views);
    }

    /// Ends a capacity reservation before its time.
    pub(super) fn end_reservation(&mut self, tenant: &str, name: &str, answer: Answer<()>) {
        let found = self
            .reservations
            .by_name
            .get(&(tenant.to_owned(), name.to_owned()));
        let id = found.and_then(|record| Uuid::parse_str(&record.uid).ok());
        let Some(id) = id else {
            let none = format!("no capacity reservation `{name}`");
            return refuse(answer, Failure::not_found(none));
        };
        let id = BookingId(id.as_u128());
        let _ = self.fleet.end_booking(id);
        self.drop_reservation(id);
        self.plan.reply(true, answer, |_| ());
    }

    /// Ends what is over, and keeps what was lost with its host elsewhere.
    pub(super) fn keep_reserved(&mut self, now: Now) {
        if self.reservations.is_empty() {
            return;
        }
        for ended in self.fleet.advance(now.time()) {
            self.drop_reservation(ended);
        }
    }

    fn drop_reservation(&mut self, id: BookingId) {
        if let Some(record) = self.reservations.remove(id) {
            let transaction = Transaction::new();
            self.plan
                .write(transaction.delete(records::RESERVATION, &key(&record), Expect::Any));
        }
    }

    /// Takes over a reservation from the store. One that has ended meanwhile goes.
    pub(super) fn adopt_reservation(
        &mut self,
        now: Now,
        record: ReservationRecord,
    ) -> Result<(), String> {
        let id = Uuid::parse_str(&record.uid).map_err(|error| format!("uid: {error}"))?;
        let id = BookingId(id.as_u128());
        let adopted = match record.ends_us > now.us {
            true => self.fleet.adopt_booking(now.time(), booking(id, &record)),
            false => Err(BookingError::Void),
        };
        self.reservations.insert(id, record);
        match adopted {
            Ok(()) => Ok(()),
            Err(BookingError::Void) => {
                self.drop_reservation(id);
                Ok(())
            }
            // A zone that has no host now may have some again, but its flavor will not.
            Err(error) => {
                tracing::warn!(%error, "a capacity reservation cannot be kept any more");
                self.drop_reservation(id);
                Ok(())
            }
        }
    }

    fn view_reservation(&self, id: BookingId, record: &ReservationRecord) -> CapacityReservation {
        let view = self.fleet.booking(id);
        let (idle, used) = view.map_or((0, 0), |view| (view.idle, view.used));
        CapacityReservation {
            name: record.name.clone(),
            tenant: record.tenant.clone(),
            flavor: record.flavor.clone(),
            count: record.count,
            zones: record.zones.clone(),
            ends_us: record.ends_us,
            idle,
            used,
        }
    }
}

fn zones(zones: &[String]) -> Zones {
    match zones.is_empty() {
        true => Zones::Any,
        false => Zones::AnyOf(zones.to_vec()),
    }
}

fn booking(id: BookingId, record: &ReservationRecord) -> Booking {
    Booking {
        id,
        tenant: record.tenant.clone(),
        flavor: record.flavor.clone(),
        count: record.count,
        zones: zones(&record.zones),
        disks: DISKS,
        ends: time(record.ends_us),
    }
}

fn key(record: &ReservationRecord) -> String {
    format!("{}/{}", record.tenant, record.name)
}
