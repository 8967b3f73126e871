//! Generates the services with protox, so that no protoc is needed.

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
    tonic_prost_build::configure()
        .boxed(".longship.control.v1.FromCard.message.report")
        .boxed(".longship.control.v1.ToCard.message.assign")
        .compile_fds(descriptors)?;
    Ok(())
}
