//! Generates the services with protox, so that no protoc is needed.

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = "..";
    let files = [
        "longship/control/v1/pod.proto",
        "longship/control/v1/pods.proto",
        "longship/control/v1/cards.proto",
        "longship/control/v1/inventory.proto",
        "longship/control/v1/tenancy.proto",
        "longship/control/v1/network.proto",
        "longship/control/v1/capacity.proto",
        "longship/control/v1/image_cache.proto",
        "longship/card/v1/card.proto",
        "longship/agent/v1/agent.proto",
    ];
    for file in files {
        println!("cargo:rerun-if-changed={root}/{file}");
    }
    let descriptors = protox::compile(files, [root])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("longship.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .extern_path(
            ".longship.error.v1.Failure",
            "::longship_framed::error::Failure",
        )
        .boxed(".longship.control.v1.PodResult.result.pod")
        .compile_fds(descriptors)?;
    Ok(())
}
