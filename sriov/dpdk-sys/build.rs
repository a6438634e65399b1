//! Compiles the C shim against the system's libdpdk and writes the layout checks that it includes.
//!
//! The numbers that Rust believes about `rte_mbuf` stand once, in `src/layout.rs`. This script turns them into
//! `_Static_assert`s, so a DPDK whose mbuf looks different fails here and not at run time.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, process};

#[allow(dead_code)]
#[path = "src/layout.rs"]
mod layout;

/// The libraries whose symbols the shim names. Drivers are loaded by EAL at run time, but for vhost's, which is asked more
/// than ethdev knows to ask.
const LIBRARIES: &[&str] = &[
    "rte_ethdev",
    "rte_mbuf",
    "rte_mempool",
    "rte_ring",
    "rte_eal",
    "rte_kvargs",
    "rte_vhost",
    "rte_net_vhost",
];

fn main() {
    println!("cargo:rerun-if-changed=src/shim.c");
    println!("cargo:rerun-if-changed=src/memif_wake.c");
    println!("cargo:rerun-if-changed=src/port_events.c");
    println!("cargo:rerun-if-changed=src/vhost.c");
    println!("cargo:rerun-if-changed=src/layout.rs");
    println!("cargo:rerun-if-env-changed=PKG_CONFIG_PATH");

    let flags = compile_flags();
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_else(|| fail("OUT_DIR is not set")));
    write_layout_checks(&out.join("layout_checks.h"));

    let mut build = cc::Build::new();
    build
        .file("src/shim.c")
        .file("src/memif_wake.c")
        .file("src/port_events.c")
        .file("src/vhost.c")
        .include(&out)
        .opt_level(2)
        .flag("-std=gnu11");
    // Without this, headers that mention an experimental function anywhere refuse to be inlined.
    build.define("ALLOW_EXPERIMENTAL_API", None);
    for flag in &flags {
        build.flag(flag);
    }
    build.compile("forebay_dpdk_shim");

    link();
}

/// The flags that DPDK asks its users to compile with. They carry more than paths (`-march`, `-include`), which
/// the pkg-config crate does not hand on, so the tool itself is asked.
fn compile_flags() -> Vec<String> {
    let tool = env::var("PKG_CONFIG").unwrap_or_else(|_| "pkg-config".into());
    let answer = process::Command::new(&tool).args(["--cflags", "libdpdk"]).output();
    let output = match answer {
        Ok(output) => output,
        Err(error) => fail(&format!("cannot run {tool} ({error}): install pkg-config, or run scripts/setup")),
    };
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        fail(&format!(
            "libdpdk is missing: install the package libdpdk-dev (22.11 or newer), or run scripts/setup\n{reason}"
        ));
    }
    // System headers, so that DPDK's own warnings are not ours.
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().map(|flag| flag.replacen("-I", "-isystem", 1)).collect()
}

fn link() {
    let library = pkg_config::Config::new().atleast_version("22.11").cargo_metadata(false).probe("libdpdk");
    let library = match library {
        Ok(library) => library,
        Err(error) => fail(&format!(
            "libdpdk 22.11 or newer is needed: install libdpdk-dev, or run scripts/setup\n{error}"
        )),
    };
    for path in &library.link_paths {
        println!("cargo:rustc-link-search=native={}", path.display());
    }
    for name in LIBRARIES {
        println!("cargo:rustc-link-lib=dylib={name}");
    }
}

fn write_layout_checks(path: &Path) {
    let mut text = String::from("/* Written by build.rs from layout.rs. */\n");
    for (field, offset) in layout::FIELDS {
        let _ = writeln!(
            text,
            "_Static_assert(offsetof(struct rte_mbuf, {field}) == {offset}, \"rte_mbuf.{field} moved\");"
        );
    }
    for (name, value) in layout::CONSTANTS {
        let _ = writeln!(text, "_Static_assert(({name}) == {value:#x}ULL, \"{name} changed\");");
    }
    let size = layout::MBUF_SIZE_BYTES;
    let _ =
        writeln!(text, "_Static_assert(sizeof(struct rte_mbuf) == {size}, \"rte_mbuf changed its size\");");
    if let Err(error) = fs::write(path, text) {
        fail(&format!("cannot write {}: {error}", path.display()));
    }
}

fn fail(message: &str) -> ! {
    eprintln!("forebay-dpdk-sys: {message}");
    process::exit(1)
}
