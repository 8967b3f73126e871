//! What must hold at any moment, and what must hold in the end.

use std::collections::{BTreeMap, BTreeSet};

use longship_proto::control::v1::{Phase, Pod, PodStatus};
use longship_store::Store;
use prost::Message;

use crate::clients::{Fate, LONELY, as_watched, name};
use crate::world::{CAPACITY, World, lock};

/// What the control plane has written down of all pods, by uid.
pub(crate) struct Written(pub(crate) BTreeMap<String, Pod>);

impl Written {
    /// It has been acknowledged, or will be.
    pub(crate) fn read(world: &World<'_>, runtime: &tokio::runtime::Runtime) -> Self {
        let listing = runtime.block_on(world.store.list("pod", "")).unwrap();
        let pods = listing.objects.iter().map(|object| {
            let pod = Pod::decode(&object.value[..]).unwrap();
            (pod.metadata.as_ref().unwrap().uid.clone(), pod)
        });
        Self(pods.collect())
    }

    pub(crate) fn lines(&self) -> BTreeMap<String, String> {
        let lines = self.0.values().map(|pod| {
            let (meta, status) = parts(pod);
            let line = format!(
                "{:?} on `{}` generation {}{} {} {}",
                status.phase(),
                status.host,
                meta.generation,
                if meta.deleted_us > 0 { " deleted" } else { "" },
                status.reason,
                status.message,
            );
            (name(pod), line)
        });
        lines.collect()
    }
}

fn parts(pod: &Pod) -> (&longship_proto::control::v1::ObjectMeta, &PodStatus) {
    (pod.metadata.as_ref().unwrap(), pod.status.as_ref().unwrap())
}

/// What must hold at any moment.
pub(crate) fn always(world: &World<'_>, written: &Written) -> Result<(), String> {
    one_place_each(world)?;
    capacities(world, written)?;
    addresses_and_reasons(written)?;
    apart(written)?;
    nothing_lost(world, written)
}

/// No pod is on two cards with the same generation.
fn one_place_each(world: &World<'_>) -> Result<(), String> {
    let mut places: BTreeMap<(String, u64), &str> = BTreeMap::new();
    for card in &world.cards {
        for (uid, held) in lock(&card.holdings).pods() {
            if let Some(other) = places.insert((uid.to_owned(), held.generation), &card.name) {
                return Err(format!(
                    "pod {uid} runs on {other} and on {} with generation {}",
                    card.name, held.generation
                ));
            }
        }
    }
    Ok(())
}

/// No host has promised, and no card runs, more than there is. What a card still runs that
/// the control plane has given up (it was fenced, or does not know of it yet) does not
/// count: nobody can take it away before the card is heard of again.
fn capacities(world: &World<'_>, written: &Written) -> Result<(), String> {
    let mut promised: BTreeMap<&str, (u64, u64, u32)> = BTreeMap::new();
    for pod in written.0.values() {
        let (_, status) = parts(pod);
        let over = matches!(status.phase(), Phase::Succeeded | Phase::Failed);
        if status.host.is_empty() || over {
            continue;
        }
        let flavor = status.flavor.as_ref().ok_or("a place without a flavor")?;
        let sum = promised.entry(&status.host).or_default();
        sum.0 += u64::from(flavor.cpu_millis);
        sum.1 += flavor.memory_bytes;
        sum.2 += 1;
    }
    for (host, sum) in promised {
        within(host, "has promised", sum)?;
    }
    for card in &world.cards {
        let mut sum = (0, 0, 0);
        for (uid, held) in lock(&card.holdings).pods() {
            let wanted = written.0.get(uid).is_some_and(|pod| {
                let (meta, status) = parts(pod);
                meta.generation == held.generation && status.host == card.name
            });
            if wanted && held.takes_room() {
                sum.0 += u64::from(held.flavor.cpu_millis);
                sum.1 += held.flavor.memory_bytes;
                sum.2 += 1;
            }
        }
        within(&card.name, "runs", sum)?;
    }
    Ok(())
}

fn within(host: &str, what: &str, (cpu, memory, pods): (u64, u64, u32)) -> Result<(), String> {
    let fits = cpu <= u64::from(CAPACITY.cpu_millis)
        && memory <= CAPACITY.memory_bytes
        && pods <= CAPACITY.pods;
    match fits {
        true => Ok(()),
        false => Err(format!(
            "{host} {what} {cpu} millis, {memory} bytes, {pods} pods"
        )),
    }
}

fn addresses_and_reasons(written: &Written) -> Result<(), String> {
    let mut taken = BTreeSet::new();
    for pod in written.0.values() {
        let (_, status) = parts(pod);
        if let Some(eni) = &status.eni
            && !taken.insert((&eni.vpc, &eni.address))
        {
            return Err(format!("two pods have the address {}", eni.address));
        }
        if status.phase() == Phase::Pending
            && (status.reason.is_empty() || status.message.is_empty())
        {
            return Err(format!("{} waits, and no reason is given", name(pod)));
        }
    }
    Ok(())
}

/// No host has promised places to two pods of which each wants to be without the other.
fn apart(written: &Written) -> Result<(), String> {
    let mut hosts = BTreeSet::new();
    for pod in written.0.values() {
        let (meta, status) = parts(pod);
        let over = matches!(status.phase(), Phase::Succeeded | Phase::Failed);
        if meta.labels.contains_key(LONELY)
            && !over
            && !status.host.is_empty()
            && !hosts.insert(&status.host)
        {
            return Err(format!(
                "{} has two pods that want to be apart",
                status.host
            ));
        }
    }
    Ok(())
}

/// What has been acknowledged exists, as the very pod that it was.
fn nothing_lost(world: &World<'_>, written: &Written) -> Result<(), String> {
    let by_name: BTreeMap<String, &str> = written
        .0
        .iter()
        .map(|(uid, pod)| (name(pod), uid.as_str()))
        .collect();
    if by_name.len() != written.0.len() {
        return Err("two pods have one name".into());
    }
    world.clients.with(|ledger| {
        for (name, fate) in &ledger.pods {
            if let Fate::Acknowledged { uid } = fate
                && by_name.get(name) != Some(&uid.as_str())
            {
                return Err(format!(
                    "{name} was acknowledged as {uid}, and is {:?}",
                    by_name.get(name)
                ));
            }
        }
        Ok(())
    })
}

/// Nothing is wrong any more, and everything is as it should be.
pub(crate) fn converged(world: &World<'_>, written: &Written) -> Result<(), String> {
    for card in &world.cards {
        if !card.attached.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(format!("{} is not attached", card.name));
        }
        for (uid, held) in lock(&card.holdings).pods() {
            let pod = written.0.get(uid);
            let pod = pod.ok_or_else(|| format!("{} still has {uid}", card.name))?;
            let (meta, status) = parts(pod);
            if status.host != card.name || meta.generation != held.generation {
                return Err(format!("{} still has {} of old", card.name, name(pod)));
            }
            if status.phase() != held.phase {
                return Err(format!(
                    "{} is {:?} on its card and {:?} for the control plane",
                    name(pod),
                    held.phase,
                    status.phase()
                ));
            }
        }
    }
    for (uid, pod) in &written.0 {
        let (meta, status) = parts(pod);
        if meta.deleted_us > 0 {
            return Err(format!("{} is deleted and has not gone", name(pod)));
        }
        match status.phase() {
            Phase::Pending | Phase::Failed | Phase::Succeeded => {}
            Phase::Running => {
                let card = world.cards.iter().find(|card| card.name == status.host);
                let card = card.ok_or("a pod on a host that does not exist")?;
                if !lock(&card.holdings).pods().any(|(held, _)| held == uid) {
                    return Err(format!("{} runs, but not on its card", name(pod)));
                }
                if !status.reason.is_empty() {
                    return Err(format!("{} runs, but: {}", name(pod), status.reason));
                }
            }
            phase => return Err(format!("{} is still {phase:?}", name(pod))),
        }
    }
    let watched = world.clients.with(|ledger| ledger.watched.clone());
    let written: BTreeMap<String, _> = written
        .0
        .values()
        .map(|pod| (name(pod), as_watched(pod)))
        .collect();
    if watched != written {
        return Err(format!(
            "a watcher has\n{watched:?}\nbut there is\n{written:?}"
        ));
    }
    Ok(())
}
