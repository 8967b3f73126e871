//! Capacity reservations: room kept for a tenant until an end.

use std::fmt;

use super::Fleet;
use super::gate::Gate;
use super::ledger::{Admission, Stage};
use crate::placement::{HostId, Placed, PodId};
use crate::reason::{Declined, Refusal};
use crate::slab::NONE;
use crate::template::{Class, PodTemplate, Zones};

/// A point in time, in milliseconds since whatever its giver counts from. The fleet
/// has no clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

/// A capacity reservation's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BookingId(pub u128);

impl fmt::Display for BookingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Room for so many pods of one flavor, kept for a tenant until an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Booking {
    /// Unique.
    pub id: BookingId,
    /// Whose it is.
    pub tenant: String,
    /// The flavor's name.
    pub flavor: String,
    /// How many pods.
    pub count: u32,
    /// Where; all of it where there is room.
    pub zones: Zones,
    /// Disks that each pod may have.
    pub disks: u32,
    /// When it ends. Its pods stay, as on-demand ones.
    pub ends: Time,
}

/// Why room is not kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BookingError {
    /// There is one of that name.
    #[error("there is a capacity reservation {0} already")]
    Exists(BookingId),
    /// There is none of that name.
    #[error("there is no capacity reservation {0}")]
    Unknown(BookingId),
    /// It is over already, or keeps nothing.
    #[error("a capacity reservation must keep something and end later")]
    Void,
    /// As a pod would be.
    #[error("room for {fits} of {count}: {declined}")]
    Declined {
        /// How many had room.
        fits: u32,
        /// How many were asked for.
        count: u32,
        /// Why the next had none.
        declined: Declined,
    },
}

/// A capacity reservation as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BookingView {
    /// As asked for.
    pub booking: Booking,
    /// Places that wait for a pod.
    pub idle: u32,
    /// Pods that draw on it.
    pub used: u32,
}

impl BookingView {
    /// Places lost with their hosts, for which there was no other yet.
    #[must_use]
    pub fn missing(&self) -> u32 {
        self.booking.count.saturating_sub(self.idle + self.used)
    }
}

#[derive(Debug)]
pub(super) struct Booked {
    booking: Booking,
    tenant: u32,
    template: u32,
    /// Places that wait for a pod, by their numbers among the pods.
    idle: Vec<u32>,
    used: u32,
}

impl Fleet {
    /// Keeps room until an end: all of it, or none.
    ///
    /// # Errors
    /// [`BookingError`].
    pub fn book(&mut self, now: Time, booking: Booking) -> Result<(), BookingError> {
        let count = booking.count;
        let declined = |fits, declined: Declined| BookingError::Declined {
            fits,
            count,
            declined,
        };
        let slot = self.add_booking(now, booking)?;
        for fits in 0..count {
            if let Err(error) = self.keep_one(slot) {
                self.unbook(slot);
                return Err(declined(fits, error));
            }
        }
        Ok(())
    }

    /// Takes over what was kept in an earlier life of the scheduler. Its places are
    /// found again by and by ([`Fleet::advance`]), once their hosts take pods.
    ///
    /// # Errors
    /// [`BookingError`]; never that there is no room.
    pub fn adopt_booking(&mut self, now: Time, booking: Booking) -> Result<(), BookingError> {
        self.add_booking(now, booking).map(|_| ())
    }

    fn add_booking(&mut self, now: Time, booking: Booking) -> Result<u32, BookingError> {
        let id = booking.id;
        if self.booking_ids.contains_key(&id) {
            return Err(BookingError::Exists(id));
        }
        if booking.count == 0 || booking.ends <= now {
            return Err(BookingError::Void);
        }
        let count = booking.count;
        let spec = PodTemplate {
            tenant: booking.tenant.clone(),
            flavors: vec![booking.flavor.clone()],
            zones: booking.zones.clone(),
            disks: booking.disks,
            class: Class::Reserved,
            ..PodTemplate::default()
        };
        let template = self
            .intern(&spec)
            .map_err(|refusal: Refusal| BookingError::Declined {
                fits: 0,
                count,
                declined: refusal.into(),
            })?;
        let tenant = self.templates[template].tenant;
        self.hold_template(template);
        let ends = booking.ends;
        let slot = self.bookings.insert(Booked {
            booking,
            tenant,
            template,
            idle: Vec::new(),
            used: 0,
        });
        self.booking_ids.insert(id, slot);
        self.booking_ends.insert((ends, id));
        self.tenants[tenant as usize].bookings.push(slot);
        Ok(slot)
    }

    /// That capacity reservation, where it is the tenant's.
    pub(super) fn find_booking(&self, id: BookingId, tenant: u32) -> Option<u32> {
        let slot = self.booking_ids.get(&id).copied();
        slot.filter(|slot| self.bookings[*slot].tenant == tenant)
    }

    /// One more pod draws on it.
    pub(super) fn count_used(&mut self, booking: u32) {
        self.bookings[booking].used += 1;
    }

    /// The capacity reservation that a pod draws on.
    #[must_use]
    pub fn drawn_on(&self, pod: PodId) -> Option<BookingId> {
        let held = &self.pods[*self.by_id.get(&pod)?];
        let booked = self.bookings.get(held.booking)?;
        Some(booked.booking.id)
    }

    /// When the next capacity reservation ends.
    #[must_use]
    pub fn next_end(&self) -> Option<Time> {
        self.booking_ends.first().map(|(ends, _)| *ends)
    }

    /// The capacity reservation of that name as it is now.
    #[must_use]
    pub fn booking(&self, id: BookingId) -> Option<BookingView> {
        let slot = *self.booking_ids.get(&id)?;
        Some(self.view_booking(slot))
    }

    fn view_booking(&self, slot: u32) -> BookingView {
        let booked = &self.bookings[slot];
        BookingView {
            booking: booked.booking.clone(),
            idle: crate::slab::number(booked.idle.len()),
            used: booked.used,
        }
    }

    /// Ends a capacity reservation before its time.
    ///
    /// # Errors
    /// [`BookingError::Unknown`].
    pub fn end_booking(&mut self, id: BookingId) -> Result<(), BookingError> {
        let slot = self.booking_ids.get(&id).copied();
        self.unbook(slot.ok_or(BookingError::Unknown(id))?);
        Ok(())
    }

    /// Lets time pass: what has ended is free, and what was lost with its host is
    /// kept elsewhere where there is room. Answers what has ended.
    pub fn advance(&mut self, now: Time) -> Vec<BookingId> {
        let mut ended = Vec::new();
        while let Some(&(ends, id)) = self.booking_ends.first()
            && ends <= now
        {
            if let Some(&slot) = self.booking_ids.get(&id) {
                self.unbook(slot);
            }
            ended.push(id);
        }
        let short = self
            .bookings
            .iter()
            .filter(|(slot, _)| self.missing(*slot) > 0);
        let short: Vec<u32> = short.map(|(slot, _)| slot).collect();
        for slot in short {
            while self.missing(slot) > 0 && self.keep_one(slot).is_ok() {}
        }
        ended
    }

    /// All capacity reservations, by their names.
    pub fn bookings(&self) -> impl Iterator<Item = BookingView> {
        let slots = self.booking_ids.values();
        slots.map(|slot| self.view_booking(*slot))
    }

    /// A place for a pod out of what its tenant has reserved.
    pub(super) fn draw(&mut self, pod: PodId, template: u32) -> Option<Placed> {
        let (booking, kept, choice) = self.find_kept(template)?;
        let host = self.pods[kept].host;
        // All or nothing: the place is the pod's, or it is kept as before.
        let (tenant, takes) = (self.templates[template].tenant, choice.takes);
        let kept_takes = self.pods[kept].takes;
        let before = self.take_news();
        self.withdraw(kept);
        if self.check_limits(tenant, takes).is_err() || !takes.fits(self.room(host)) {
            self.keep_on(booking, host, kept_takes);
            self.news = before;
            return None;
        }
        let since = self.take_news();
        self.news = before.and(since);
        let slot = self.admit(Admission {
            pod: Some(pod),
            template,
            takes,
            host,
            booking,
            class: Class::Reserved,
            stage: Stage::Reserved,
        });
        self.bookings[booking].used += 1;
        Some(Placed {
            ticket: self.pods[slot].ticket(),
            host: HostId(host),
            flavor: choice.flavor,
            from_reservation: true,
            victims: Vec::new(),
        })
    }

    fn find_kept(&self, template: u32) -> Option<(u32, u32, super::Choice)> {
        let entry = &self.templates[template];
        let gate = Gate::new(self, entry, false);
        let mut bookings = self.tenants[entry.tenant as usize].bookings.clone();
        // What ends first is used first.
        bookings.sort_by_key(|slot| {
            let booking = &self.bookings[*slot].booking;
            (booking.ends, booking.id)
        });
        let zones = self.zones_of(entry);
        entry.choices.iter().find_map(|choice| {
            let flavor = self.flavors.at(usize::from(choice.flavor))?;
            let suits = |slot: &&u32| self.bookings[**slot].booking.flavor == flavor.name;
            bookings.iter().filter(suits).find_map(|&slot| {
                let kept = self.bookings[slot].idle.iter().rev();
                let mut kept = kept.filter(|kept| {
                    let held = &self.pods[**kept];
                    let site = self.site(held.host);
                    site.open
                        && zones.contains(&site.zone)
                        && gate.zone(site.zone).is_none()
                        && gate.host(held.host).is_none()
                        && choice.takes.fits(self.room(held.host).plus(held.takes))
                });
                kept.next().map(|kept| (slot, *kept, *choice))
            })
        })
    }

    /// A pod that drew on it has gone: its place is kept again, if it can be.
    pub(super) fn keep_booked(&mut self, booking: u32, host: u32) {
        let Some(booked) = self.bookings.get(booking) else {
            return;
        };
        let takes = self.templates[booked.template]
            .choices
            .first()
            .map(|choice| choice.takes);
        let Some(takes) = takes else { return };
        let open = self.hosts.get(host).is_some_and(super::Host::is_open);
        if self.missing(booking) > 0 && open && takes.fits(self.room(host)) {
            self.keep_on(booking, host, takes);
        }
    }

    /// A place of it has gone from its host.
    pub(super) fn lose_booked(&mut self, booking: u32, slot: u32) {
        if let Some(booked) = self.bookings.get_mut(booking) {
            let before = booked.idle.len();
            booked.idle.retain(|kept| *kept != slot);
            if booked.idle.len() == before {
                booked.used -= 1;
            }
        }
    }

    /// What the host keeps for anybody is kept elsewhere, if it can be.
    pub(super) fn unbook_host(&mut self, host: u32) {
        let on_host = self.hosts[host]
            .pods
            .iter::<{ super::BY_HOST }, _>(&self.pods);
        let kept = on_host.filter(|(_, held)| held.pod.is_none());
        let kept: Vec<(u32, u32)> = kept.map(|(slot, held)| (slot, held.booking)).collect();
        for (slot, booking) in kept {
            self.withdraw(slot);
            let _ = self.keep_one(booking);
        }
    }

    pub(super) fn missing(&self, booking: u32) -> u32 {
        let booked = &self.bookings[booking];
        let there = crate::slab::number(booked.idle.len()) + booked.used;
        booked.booking.count.saturating_sub(there)
    }

    /// Keeps one more place, wherever there is room.
    fn keep_one(&mut self, booking: u32) -> Result<(), Declined> {
        let template = self.bookings[booking].template;
        let found = self.search(&self.templates[template], true);
        let (choice, host) = found.ok_or(Declined::NoRoom)?;
        let tenant = self.templates[template].tenant;
        self.check_limits(tenant, choice.takes)?;
        self.keep_on(booking, host, choice.takes);
        Ok(())
    }

    fn keep_on(&mut self, booking: u32, host: u32, takes: crate::amount::Amount) {
        let template = self.bookings[booking].template;
        let slot = self.admit(Admission {
            pod: None,
            template,
            takes,
            host,
            booking,
            class: Class::Reserved,
            stage: Stage::Committed,
        });
        self.bookings[booking].idle.push(slot);
    }

    fn unbook(&mut self, slot: u32) {
        for kept in self.bookings[slot].idle.clone() {
            self.withdraw(kept);
        }
        let Some(booked) = self.bookings.remove(slot) else {
            return;
        };
        self.booking_ids.remove(&booked.booking.id);
        self.booking_ends
            .remove(&(booked.booking.ends, booked.booking.id));
        self.tenants[booked.tenant as usize]
            .bookings
            .retain(|one| *one != slot);
        self.drop_template(booked.template);
        self.demote(booked.tenant, slot);
    }

    /// Pods that drew on what has ended are on-demand pods now.
    fn demote(&mut self, tenant: u32, booking: u32) {
        let ranks = &self.tenants[tenant as usize].ranks;
        let reserved = ranks
            .iter()
            .filter(|((class, _), _)| *class == Class::Reserved);
        let pods = reserved.flat_map(|(_, chain)| chain.iter::<{ super::BY_RANK }, _>(&self.pods));
        let pods = pods.filter(|(_, held)| held.booking == booking);
        let mut pods: Vec<u32> = pods.map(|(pod, _)| pod).collect();
        pods.sort_unstable();
        for pod in pods {
            self.rerank(pod, Class::OnDemand);
            self.pods[pod].booking = NONE;
        }
    }
}
