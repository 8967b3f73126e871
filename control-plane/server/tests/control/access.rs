//! Access to a pod's streams.

use longship_proto::Class;
use longship_proto::control::v1::{GetPodAccessRequest, Phase};
use longship_proto::token::{self, TokenError};

use crate::card::Card;
use crate::setup::{Control, answer, meta, pod};

const FIVE_MINUTES_US: i64 = 5 * 60 * 1_000_000;

fn of(name: &str) -> GetPodAccessRequest {
    GetPodAccessRequest {
        namespace: String::new(),
        name: name.into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_takes_the_token_for_that_pod_and_for_five_minutes() {
    let mut control = Control::start().await;
    let card = Card::attach(&control, "host-1", "zone-a").await;
    let web = control.create(pod("web", 500, 512)).await.unwrap();
    let access = answer(control.pods().await.get_pod_access(of("web")).await).unwrap();
    assert_eq!(access.endpoint, "http://host-1.cards:7702");
    assert_eq!(access.pod_uid, meta(&web).uid);
    let (key, expires) = (&card.token_key, access.expires_us);
    let verify = |uid: &str, now| token::verify(key, &access.token, uid, now);
    assert_eq!(verify(&access.pod_uid, expires - 1), Ok(()));
    assert_eq!(verify(&access.pod_uid, expires), Err(TokenError::Expired));
    assert_eq!(verify("another", expires - 1), Err(TokenError::OtherPod));
    assert!(expires - meta(&web).created_us >= FIVE_MINUTES_US);
    assert!(expires - meta(&web).created_us < FIVE_MINUTES_US + 60_000_000);

    // The key outlives the process, so that cards need no new one.
    control.restart().await;
    let access = answer(control.pods().await.get_pod_access(of("web")).await).unwrap();
    assert_eq!(
        token::verify(key, &access.token, &access.pod_uid, expires - 1),
        Ok(())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_no_access_to_what_does_not_run() {
    let control = Control::start_with(|config| {
        config.lease = std::time::Duration::from_millis(1000);
    })
    .await;
    let mut client = control.pods().await;
    let refused = answer(client.get_pod_access(of("web")).await).unwrap_err();
    assert_eq!(refused.class(), Class::NotFound);
    control.create(pod("web", 500, 512)).await.unwrap();
    let refused = answer(client.get_pod_access(of("web")).await).unwrap_err();
    assert_eq!(refused.class(), Class::Unavailable);
    assert!(
        refused.message.contains("no host has registered yet"),
        "{refused}"
    );

    let card = Card::attach(&control, "host-1", "zone-a").await;
    control.wait_phase("web", Phase::Scheduled).await;
    control
        .wait("web", |pod| !pod.status.as_ref().unwrap().reason.is_empty())
        .await;
    let refused = answer(client.get_pod_access(of("web")).await).unwrap_err();
    assert_eq!(refused.class(), Class::Unavailable);
    assert!(refused.message.contains("not heard of"), "{refused}");
    drop(card);
}
