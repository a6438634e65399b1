//! The machine that the figures come from: without it they mean nothing.

use std::fs;

use forebay_pipeline::{cores, tsc};
use serde_json::{Value, json};

use crate::figures::rounded;

/// The machine, and how busy it was when the benchmark began.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    cpu_model: String,
    cores: String,
    tsc_hz: u64,
    /// Processes that ran or wanted to, on average over 1, 5 and 15 minutes.
    load_average: [f64; 3],
    kernel: String,
}

impl Machine {
    /// Looks around. What the kernel does not tell stays empty.
    pub(crate) fn look() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self {
            cpu_model: cpu_model(&read("/proc/cpuinfo")),
            cores: cores::format(&cores::available()),
            tsc_hz: tsc::hz(),
            load_average: load_average(&read("/proc/loadavg")),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }

    pub(crate) fn tsc_hz(&self) -> u64 {
        self.tsc_hz
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "cpu_model": self.cpu_model,
            "cores": self.cores,
            "tsc_hz": self.tsc_hz,
            "load_average": self.load_average.map(|load| rounded(load, 2)),
            "kernel": self.kernel,
            "optimized_build": !cfg!(debug_assertions),
        })
    }

    pub(crate) fn to_text(&self) -> String {
        let [one, five, fifteen] = self.load_average;
        format!(
            "{}, cores {}, time stamps at {:.0} MHz, Linux {}, load average {one:.2} {five:.2} {fifteen:.2}",
            self.cpu_model,
            self.cores,
            self.tsc_hz as f64 / 1e6,
            self.kernel
        )
    }
}

fn cpu_model(cpuinfo: &str) -> String {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split_once(':')).map(|(_, name)| name.trim().to_owned()).unwrap_or_default()
}

fn load_average(loadavg: &str) -> [f64; 3] {
    let mut words = loadavg.split_whitespace().map(|word| word.parse().unwrap_or_default());
    [(); 3].map(|()| words.next().unwrap_or_default())
}

/// Free memory in huge pages, in MiB, as the daemon's `hugepages = "auto"` counts it.
pub(crate) fn free_hugepages_mib() -> u64 {
    let Ok(folders) = fs::read_dir("/sys/kernel/mm/hugepages") else { return 0 };
    let free_kib = folders.flatten().filter_map(|folder| {
        let name = folder.file_name();
        let kib: u64 = name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let free: u64 = fs::read_to_string(folder.path().join("free_hugepages")).ok()?.trim().parse().ok()?;
        Some(kib * free)
    });
    free_kib.sum::<u64>() / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_understood() {
        assert_eq!(load_average("4.43 5.85 5.19 9/180 12345\n"), [4.43, 5.85, 5.19]);
        assert_eq!(load_average(""), [0.0; 3]);
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: AMD EPYC: Zen\n"), "AMD EPYC: Zen");
        assert_eq!(cpu_model(""), "");
    }

    #[test]
    fn this_machine_has_a_clock_and_cores() {
        let machine = Machine::look().to_json();
        assert!(machine["tsc_hz"].as_u64().unwrap() > 1_000_000);
        assert!(!machine["cores"].as_str().unwrap().is_empty());
    }
}
