//! What this host can do: KVM and its speed, cgroups, devices.
