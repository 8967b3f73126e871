//! What tenants may have, and how fast they may ask for it.

use std::collections::HashMap;

use longship_proto::Failure;
use longship_proto::control::v1::{Quota, QuotaUsage};
use longship_scheduler::{Amount, Limits, bytes_text, cpus_text};
use uuid::Uuid;

use super::state::{Now, State};

/// Seconds' worth of creations that may come at once, where nothing else was said.
const BURST_SECONDS: u32 = 10;

/// What is counted of tenants beside what the fleet counts: places.
#[derive(Debug, Default)]
pub(crate) struct Quotas {
    tenants: HashMap<String, Tenant>,
    waiting: HashMap<Uuid, (String, Amount)>,
}

#[derive(Debug, Default)]
struct Tenant {
    quota: Quota,
    /// What those take at least that wait.
    waiting: Sum,
    /// Creations that may come now, in millionths; it was so at that time.
    tokens: u64,
    counted_us: i64,
}

/// A sum over many pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sum {
    cpu_millis: u64,
    memory_bytes: u64,
    enis: u64,
    gpus: u64,
}

impl Sum {
    fn plus(self, amount: Amount) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_add(amount.cpu_millis.into()),
            memory_bytes: self.memory_bytes.saturating_add(amount.memory_bytes),
            enis: self.enis.saturating_add(amount.enis.into()),
            gpus: self.gpus.saturating_add(amount.gpus.into()),
        }
    }

    fn minus(self, amount: Amount) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_sub(amount.cpu_millis.into()),
            memory_bytes: self.memory_bytes.saturating_sub(amount.memory_bytes),
            enis: self.enis.saturating_sub(amount.enis.into()),
            gpus: self.gpus.saturating_sub(amount.gpus.into()),
        }
    }
}

const TOKEN: u64 = 1_000_000;

impl Tenant {
    /// How many may be created at once after a pause.
    fn burst(&self) -> Option<u64> {
        let rate = self.quota.creates_per_second?;
        let burst = self.quota.create_burst;
        Some(
            burst
                .unwrap_or_else(|| rate.saturating_mul(BURST_SECONDS))
                .into(),
        )
    }

    /// Counts what has become possible since it was last counted.
    fn refill(&mut self, now_us: i64) {
        let (Some(rate), Some(burst)) = (self.quota.creates_per_second, self.burst()) else {
            return;
        };
        let passed = u64::try_from(now_us.saturating_sub(self.counted_us)).unwrap_or_default();
        self.counted_us = now_us;
        // A rate a second is as much in millionths a microsecond.
        let more = passed.saturating_mul(rate.into());
        self.tokens = self
            .tokens
            .saturating_add(more)
            .min(burst.saturating_mul(TOKEN));
    }
}

impl Quotas {
    /// Sets what a tenant may have. What it has stays.
    pub(super) fn set(&mut self, tenant: &str, quota: Quota, now_us: i64) {
        let entry = self.tenants.entry(tenant.to_owned()).or_default();
        let rate_is_new = (quota.creates_per_second, quota.create_burst)
            != (entry.quota.creates_per_second, entry.quota.create_burst);
        entry.quota = quota;
        if rate_is_new {
            entry.counted_us = now_us;
            entry.tokens = entry.burst().unwrap_or_default().saturating_mul(TOKEN);
        }
    }

    /// A pod waits that will take so much at least.
    pub(super) fn wait(&mut self, tenant: &str, id: Uuid, least: Amount) {
        self.wait_no_more(id);
        let entry = self.tenants.entry(tenant.to_owned()).or_default();
        entry.waiting = entry.waiting.plus(least);
        self.waiting.insert(id, (tenant.to_owned(), least));
    }

    /// A pod waits no more, if it did.
    pub(super) fn wait_no_more(&mut self, id: Uuid) {
        if let Some((tenant, least)) = self.waiting.remove(&id)
            && let Some(entry) = self.tenants.get_mut(&tenant)
        {
            entry.waiting = entry.waiting.minus(least);
        }
    }
}

/// New pods of one tenant: how many, and what they take together.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Claim {
    pods: u64,
    sum: Sum,
}

impl Claim {
    /// One more pod. What it takes is not counted where it draws on what is reserved,
    /// and so counted already.
    pub(super) fn add(&mut self, takes: Amount, draws: bool) {
        self.pods += 1;
        if !draws {
            self.sum = self.sum.plus(takes);
        }
    }
}

impl State {
    /// Sets what a tenant may have, and how much of a full fleet is fair for it against
    /// other tenants' weights (0: 1).
    pub(super) fn set_quota(&mut self, now: Now, tenant: &str, quota: Quota, weight: u32) {
        // Pods are counted here: the fleet counts kept places too.
        self.fleet.set_limits(
            tenant,
            Limits {
                pods: None,
                cpu_millis: quota.cpu_millis,
                memory_bytes: quota.memory_bytes,
                enis: quota.enis,
                gpus: quota.gpus,
            },
        );
        self.fleet.set_weight(tenant, weight);
        self.quotas.set(tenant, quota, now.us);
    }

    /// A tenant is no more.
    pub(super) fn forget_quota(&mut self, tenant: &str) {
        self.fleet.set_limits(tenant, Limits::default());
        self.quotas.tenants.remove(tenant);
    }

    /// What a tenant has, and what those take at least that wait.
    pub(super) fn usage(&self, tenant: &str) -> QuotaUsage {
        let held = self.fleet.held(tenant);
        let waiting = self.quotas.tenants.get(tenant);
        let waiting = waiting.map(|entry| entry.waiting).unwrap_or_default();
        QuotaUsage {
            pods: self.pods.alive(tenant),
            cpu_millis: held.cpu_millis.saturating_add(waiting.cpu_millis),
            memory_bytes: held.memory_bytes.saturating_add(waiting.memory_bytes),
            enis: held.enis.saturating_add(waiting.enis),
            gpus: held.gpus.saturating_add(waiting.gpus),
        }
    }

    /// Checks that a tenant may have more, and counts its creation.
    ///
    /// # Errors
    /// `EXHAUSTED`, at the quota's field.
    pub(super) fn claim(&mut self, now: Now, tenant: &str, claim: &Claim) -> Result<(), Failure> {
        if !self.quotas.tenants.contains_key(tenant) {
            return Ok(());
        }
        let used = self.usage(tenant);
        let Some(entry) = self.quotas.tenants.get_mut(tenant) else {
            return Ok(());
        };
        let quota = &entry.quota;
        let (more, pods) = (&claim.sum, claim.pods);
        let plain = |amount: u64| amount.to_string();
        let cpus = |amount: u64| cpus_text(u32::try_from(amount).unwrap_or(u32::MAX));
        let texts: [&dyn Fn(u64) -> String; 3] = [&plain, &cpus, &bytes_text];
        let [plain, cpus, bytes] = texts;
        for (field, limit, used, more, text) in [
            ("pods", quota.pods, used.pods, pods, plain),
            (
                "cpu_millis",
                quota.cpu_millis,
                used.cpu_millis,
                more.cpu_millis,
                cpus,
            ),
            (
                "memory_bytes",
                quota.memory_bytes,
                used.memory_bytes,
                more.memory_bytes,
                bytes,
            ),
            ("enis", quota.enis, used.enis, more.enis, plain),
            ("gpus", quota.gpus, used.gpus, more.gpus, plain),
        ] {
            if let Some(limit) = limit
                && more > 0
                && used.saturating_add(more) > limit
            {
                return Err(Failure {
                    field: format!("quota.{field}"),
                    ..Failure::exhausted(format!(
                        "tenant `{tenant}` may have {} of {field}, has {}, and asks for {} more",
                        text(limit),
                        text(used),
                        text(more)
                    ))
                });
            }
        }
        if let Some(rate) = entry.quota.creates_per_second {
            entry.refill(now.us);
            let price = pods.saturating_mul(TOKEN);
            if price > entry.tokens {
                let burst = entry.burst().unwrap_or_default();
                return Err(Failure {
                    field: "quota.creates_per_second".into(),
                    ..Failure::exhausted(format!(
                        "tenant `{tenant}` may create {rate} pods a second, and {burst} at once; \
                         it may create {} now",
                        entry.tokens / TOKEN
                    ))
                });
            }
            entry.tokens -= price;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn creations_come_at_their_rate_after_a_burst() {
        let mut tenant = Tenant {
            quota: Quota {
                creates_per_second: Some(5),
                create_burst: Some(20),
                ..Quota::default()
            },
            ..Tenant::default()
        };
        tenant.refill(1_000_000_000);
        assert_eq!(tenant.tokens, 20 * TOKEN, "no more than the burst");
        tenant.tokens = 0;
        tenant.refill(1_000_100_000);
        assert_eq!(tenant.tokens, TOKEN / 2);
        tenant.refill(900_000_000);
        assert_eq!(
            tenant.tokens,
            TOKEN / 2,
            "a clock that goes back gives nothing"
        );
        tenant.quota.create_burst = None;
        assert_eq!(tenant.burst(), Some(50));
    }
}
