//! Clients that create and delete at the same time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use longship_proto::control::v1::Pod;
use longship_proto::now_us;
use tokio::task::JoinSet;

use super::follow::Follower;
use crate::client::{Client, small_pod};

/// Namespace of all pods.
pub(crate) const NAMESPACE: &str = "default";

/// Pods of one VPC, at most: it has 65,533 addresses.
const PODS_A_VPC: usize = 60_000;

/// When each create was asked for and answered (microseconds since the Unix epoch), and
/// how long all took.
pub(crate) struct Created {
    pub(crate) calls: HashMap<String, (i64, i64)>,
    pub(crate) took: Duration,
}

/// Fills a cluster: so many pods, spread over as many VPCs as they need, all running.
pub(crate) async fn fill(
    clients: &[Client],
    follower: &mut Follower,
    count: u32,
    batch: usize,
) -> anyhow::Result<()> {
    let names = (0..count).map(|number| format!("pod-{number:06}"));
    let names: Vec<String> = names.collect();
    for (number, names) in names.chunks(PODS_A_VPC).enumerate() {
        let vpc = match number {
            0 => String::new(),
            number => format!("sim-{number}"),
        };
        let creating = create_in(clients, names.to_vec(), batch, &vpc);
        tokio::try_join!(creating, follower.running(names.len()))?;
    }
    Ok(())
}

/// Creates small pods of these names, each client its share, so many a request.
pub(crate) async fn create(
    clients: &[Client],
    names: Vec<String>,
    batch: usize,
) -> anyhow::Result<Created> {
    create_in(clients, names, batch, "").await
}

async fn create_in(
    clients: &[Client],
    names: Vec<String>,
    batch: usize,
    vpc: &str,
) -> anyhow::Result<Created> {
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    let mut calls = HashMap::with_capacity(names.len());
    for (client, names) in shares(clients, names) {
        let vpc = vpc.to_owned();
        tasks.spawn(async move {
            let mut calls = Vec::with_capacity(names.len());
            for part in names.chunks(batch) {
                let pods = part.iter().map(|name| pod_in(&vpc, name.clone()));
                let pods: Vec<Pod> = pods.collect();
                let asked = now_us();
                create_part(&client, pods, batch).await?;
                let answered = now_us();
                calls.extend(part.iter().map(|name| (name.clone(), (asked, answered))));
            }
            anyhow::Ok(calls)
        });
    }
    while let Some(done) = tasks.join_next().await {
        calls.extend(done??);
    }
    Ok(Created {
        calls,
        took: begun.elapsed(),
    })
}

fn pod_in(vpc: &str, name: String) -> Pod {
    let mut pod = small_pod(NAMESPACE, name);
    if let Some(spec) = &mut pod.spec {
        vpc.clone_into(&mut spec.vpc);
    }
    pod
}

async fn create_part(client: &Client, mut pods: Vec<Pod>, batch: usize) -> anyhow::Result<()> {
    if batch > 1 {
        for result in client.create_many(pods, None, "").await? {
            result?;
        }
    } else if let Some(pod) = pods.pop() {
        client.create(pod, "").await?;
    }
    Ok(())
}

/// Deletes the pods of these names, each client its share.
pub(crate) async fn delete(clients: &[Client], names: Vec<String>) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    for (client, names) in shares(clients, names) {
        tasks.spawn(async move {
            for name in names {
                client.delete(NAMESPACE, &name).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

fn shares(clients: &[Client], names: Vec<String>) -> Vec<(Client, Vec<String>)> {
    let mut shares: Vec<(Client, Vec<String>)> = clients
        .iter()
        .map(|client| (client.clone(), Vec::new()))
        .collect();
    let count = shares.len().max(1);
    for (at, name) in names.into_iter().enumerate() {
        if let Some((_, share)) = shares.get_mut(at % count) {
            share.push(name);
        }
    }
    shares
}
