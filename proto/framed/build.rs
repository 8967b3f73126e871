//! Generates the messages with protox, so that no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = "..";
    let files = [
        "longship/error/v1/error.proto",
        "longship/vmm/v1/vmm.proto",
        "longship/guest/v1/guest.proto",
    ];
    for file in files {
        println!("cargo:rerun-if-changed={root}/{file}");
    }
    let descriptors = protox::compile(files, [root])?;
    prost_build::Config::new().compile_fds(descriptors)?;
    Ok(())
}
