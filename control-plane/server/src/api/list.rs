//! Pods in pages, straight from the store.

use longship_proto::Failure;
use longship_proto::control::v1::{ListPodsRequest, ListPodsResponse, Pod};
use longship_scheduler::Selector;
use longship_store::{Object, Store};

use crate::page;
use crate::reconcile::tenant_of_pod;
use crate::records::{self, decode_pod};
use crate::validate;
use crate::watch::PodSet;

/// Pods that are looked at for one page; a page of a rare selection may be short.
const MAX_LOOKED_AT: usize = 10_000;
/// Pods that are read at once.
const CHUNK: usize = 1000;
/// The most of a page in memory, in bytes: well below what clients take as one message.
const MAX_BYTES: usize = 2 << 20;

/// One page of what `set` has.
///
/// # Errors
/// `INVALID` with the field of the request, or the store's.
pub(super) async fn page(
    store: &dyn Store,
    set: &PodSet,
    request: &ListPodsRequest,
) -> Result<ListPodsResponse, Failure> {
    let selector = validate::selector("label_selector", &request.label_selector)?;
    let limit = page::limit(request.limit)?;
    let asked = [request.namespace.as_str(), request.label_selector.as_str()];
    let place = page::place(&asked, &request.page_token)?;
    let mut version = place.as_ref().map(|place| place.version);
    let mut after = place.map(|place| place.after);

    // Of several prefixes those before the place are done.
    let begun = after.clone().unwrap_or_default();
    let prefixes = set.prefixes().into_iter();
    let mut prefixes =
        prefixes.skip_while(|prefix| *prefix < begun && !begun.starts_with(prefix.as_str()));
    let mut prefix = prefixes.next();
    let (mut pods, mut bytes, mut looked_at) = (Vec::new(), 0, 0);
    let mut more = false;
    'page: while let Some(of) = &prefix {
        // One more than is wanted says whether another page is needed.
        let chunk = (limit - pods.len() + 1).min(CHUNK);
        let from = after
            .as_deref()
            .filter(|after| after.starts_with(of.as_str()));
        let read = store.list_page(records::POD, of, from, chunk).await?;
        version.get_or_insert(read.version);
        for object in read.objects {
            let full = pods.len() >= limit || bytes >= MAX_BYTES || looked_at >= MAX_LOOKED_AT;
            if full {
                more = true;
                break 'page;
            }
            looked_at += 1;
            if let Some(pod) = wanted(&object, set, &selector)? {
                bytes += object.value.len();
                pods.push(pod);
            }
            after = Some(object.key);
        }
        if !read.more {
            prefix = prefixes.next();
        }
    }
    let version = version.unwrap_or_default();
    let next = after.filter(|_| more);
    Ok(ListPodsResponse {
        pods,
        resource_version: version,
        next_page_token: next
            .map_or_else(String::new, |after| page::token(&asked, &after, version)),
    })
}

fn wanted(object: &Object, set: &PodSet, selector: &Selector) -> Result<Option<Pod>, Failure> {
    let pod = decode_pod(object).map_err(|error| Failure::internal(error.to_string()))?;
    let meta = pod.metadata.as_ref();
    let of = set.has_key(&object.key, meta.map_or("", tenant_of_pod));
    let label = |key: &str| {
        meta.and_then(|meta| meta.labels.get(key))
            .map(String::as_str)
    };
    let wanted = of && selector.matches_with(label);
    Ok(wanted.then_some(pod))
}
