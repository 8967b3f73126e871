//! Generates the services with protox, so that no protoc is needed.

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = "..";
    let files = [
        "longship/control/v1/pod.proto",
        "longship/control/v1/control.proto",
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
        .boxed(".longship.control.v1.FromCard.message.report")
        .boxed(".longship.control.v1.ToCard.message.assign")
        .compile_fds(descriptors)?;
    Ok(())
}
