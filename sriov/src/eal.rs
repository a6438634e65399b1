//! DPDK's environment: started once, then carried around as a proof.
//!
//! Several daemons run side by side on a machine, so nothing is shared through files: with huge pages EAL works in
//! memory only, without them it keeps no shared configuration (this DPDK refuses its in-memory mode there, and
//! means the same). EAL pins the thread that starts it; that is undone here, because which thread runs where is
//! for the pipeline to decide. EAL's own "main lcore" therefore spans every CPU and matters to nobody; workers join
//! through [`Eal::register_thread`].

use std::ffi::{CStr, CString, c_char};
use std::marker::PhantomData;
use std::mem;
use std::time::{Duration, Instant};

use forebay_dpdk_sys as sys;
use parking_lot::Mutex;

use crate::error::{EalError, words};
use crate::hugepages::{self, Hugepages};

/// How EAL is to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EalOptions {
    /// Whether packet memory comes from huge pages.
    pub hugepages: Hugepages,
    /// Memory for packets and devices, MiB; all of it is taken at the start.
    pub memory_mib: u32,
    /// Names the process to DPDK; the process id is added, so that several may run.
    pub name: String,
}

impl Default for EalOptions {
    fn default() -> Self {
        Self { hugepages: Hugepages::Auto, memory_mib: 512, name: "forebay".into() }
    }
}

/// Proof that EAL runs. It runs until the process ends.
#[derive(Debug, Clone, Copy)]
pub struct Eal {
    hugepages: bool,
    tsc_hz: u64,
    start_time: Duration,
}

enum State {
    NotStarted,
    Failed,
    Running(EalOptions, Eal),
}

/// EAL is one per process, and so is this.
static STATE: Mutex<State> = Mutex::new(State::NotStarted);

/// A PCI address that no machine has. Allowing it alone keeps EAL from taking the host's devices at the start;
/// those that are probed later by name are not bound by the list.
const NO_PCI_DEVICE: &str = "pci:ffff:ff:1f.7";

impl Eal {
    /// Starts EAL, or gives the running one if it was started with the same options.
    ///
    /// # Errors
    /// Options that make no sense, too few huge pages, or EAL's own reasons. After those of EAL itself, the process
    /// cannot try again.
    pub fn start(options: &EalOptions) -> Result<Self, EalError> {
        let mut state = STATE.lock();
        match &*state {
            State::Running(running, eal) if running == options => return Ok(*eal),
            State::Running(..) => return Err(EalError::AlreadyStarted),
            State::Failed => return Err(EalError::FailedBefore),
            State::NotStarted => {}
        }
        check(options)?;
        // Until EAL has taken its memory, so that nobody else counts the same pages as free.
        let _turn = hugepages::take_turn();
        let hugepages = options.hugepages.decide(options.memory_mib)?;
        let begin = Instant::now();
        let eal = match init(&arguments(options, hugepages)) {
            0 => Self { hugepages, tsc_hz: tsc_hz(), start_time: begin.elapsed() },
            error => {
                *state = State::Failed;
                return Err(EalError::Init { reason: words(error), memory_mib: options.memory_mib });
            }
        };
        remove_runtime_folder();
        *state = State::Running(options.clone(), eal);
        Ok(eal)
    }

    /// Gives the calling thread an identity, and with it its own cache in front of every packet pool. Threads
    /// without one work too, but share the pools' rings for each packet.
    ///
    /// # Errors
    /// DPDK has no identity left.
    pub fn register_thread(&self) -> Result<RegisteredThread, EalError> {
        // SAFETY: EAL runs, `self` proves it; the call concerns the calling thread only.
        let (lcore, result) = unsafe {
            match sys::fb_lcore_id() {
                u32::MAX => (u32::MAX, sys::fb_thread_register()),
                lcore => (lcore, 0),
            }
        };
        if result != 0 {
            return Err(EalError::Thread(words(result)));
        }
        Ok(RegisteredThread { owned: lcore == u32::MAX, _not_send: PhantomData })
    }

    /// Whether packet memory is in huge pages.
    #[must_use]
    pub fn uses_hugepages(&self) -> bool {
        self.hugepages
    }

    /// Ticks of the time-stamp counter per second.
    #[must_use]
    pub fn tsc_hz(&self) -> u64 {
        self.tsc_hz
    }

    /// How long EAL took to start.
    #[must_use]
    pub fn start_time(&self) -> Duration {
        self.start_time
    }
}

/// A thread's membership in EAL; ends when dropped, on the same thread.
#[derive(Debug)]
pub struct RegisteredThread {
    /// False where the thread had an identity before: whoever gave it takes it back.
    owned: bool,
    _not_send: PhantomData<*const ()>,
}

impl Drop for RegisteredThread {
    fn drop(&mut self) {
        if self.owned {
            // SAFETY: this thread registered itself, and being !Send the guard is still on it.
            unsafe { sys::fb_thread_unregister() };
        }
    }
}

fn check(options: &EalOptions) -> Result<(), EalError> {
    // 16 MiB is about what EAL and one small pool need; 1 TiB is beyond any machine it will meet.
    if !(16..=1 << 20).contains(&options.memory_mib) {
        return Err(EalError::BadMemory(options.memory_mib));
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if options.name.is_empty() || options.name.len() > 32 || !options.name.bytes().all(plain) {
        return Err(EalError::BadName(options.name.clone()));
    }
    Ok(())
}

fn arguments(options: &EalOptions, hugepages: bool) -> Vec<String> {
    let mut words: Vec<String> = vec![options.name.clone()];
    let mut add = |word: &str| words.push(word.to_owned());
    if hugepages {
        add("--in-memory");
    } else {
        add("--no-huge");
        add("--no-shconf");
    }
    add("-m");
    add(&options.memory_mib.to_string());
    add("--file-prefix");
    add(&format!("{}-{}", options.name, std::process::id()));
    add("--no-telemetry");
    add("--log-level=warning");
    // Two drivers cry wolf: tap, for a traffic class that kernels may lack and nobody needs, and for polling without
    // signals, which is what we want of it; memif, for not serving secondary processes.
    add("--log-level=pmd.net.tap:critical");
    add("--log-level=pmd.net.memif:error");
    add("-a");
    add(NO_PCI_DEVICE);
    add("--lcores");
    add(&format!("0@({})", cpu_list(&affinity())));
    words
}

/// Runs `rte_eal_init`; gives 0 or a negated errno value.
fn init(arguments: &[String]) -> i32 {
    let before = affinity();
    // EAL may keep and reorder these pointers for as long as it runs, so the words are leaked: some hundred bytes.
    let mut pointers: Vec<*mut c_char> = Vec::with_capacity(arguments.len() + 1);
    for word in arguments {
        // No argument has a NUL: the only free text, the name, was checked.
        pointers.push(CString::new(word.as_str()).unwrap_or_default().into_raw());
    }
    let count = i32::try_from(pointers.len()).unwrap_or(i32::MAX);
    pointers.push(std::ptr::null_mut());
    let pointers = Box::leak(pointers.into_boxed_slice());
    // SAFETY: the vector and its words live forever, end with null, and `STATE` lets only one caller here, once.
    let result = unsafe { sys::fb_eal_init(count, pointers.as_mut_ptr()) };
    set_affinity(&before);
    result
}

fn tsc_hz() -> u64 {
    // SAFETY: EAL has started, which measured it.
    unsafe { sys::fb_tsc_hz() }
}

/// EAL makes a folder named after the process and, as configured, puts nothing into it.
fn remove_runtime_folder() {
    // SAFETY: EAL has started, so the path is set; it is constant from then on.
    let path = unsafe { CStr::from_ptr(sys::fb_runtime_dir()) };
    // Should it have content after all, this fails and that is right.
    let _ = std::fs::remove_dir(path.to_string_lossy().as_ref());
}

fn affinity() -> libc::cpu_set_t {
    // SAFETY: a zeroed set is a valid empty set; the kernel writes at most its size into it.
    unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        if libc::sched_getaffinity(0, mem::size_of::<libc::cpu_set_t>(), &mut set) != 0 {
            libc::CPU_SET(0, &mut set);
        }
        set
    }
}

fn set_affinity(set: &libc::cpu_set_t) {
    // SAFETY: the set is initialised. Failing would need the CPUs to have vanished; then the kernel has moved us.
    unsafe { libc::sched_setaffinity(0, mem::size_of::<libc::cpu_set_t>(), set) };
}

fn cpu_list(set: &libc::cpu_set_t) -> String {
    let limit = 8 * mem::size_of::<libc::cpu_set_t>();
    // SAFETY: the index stays within the set.
    let cpus = (0..limit).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, set) });
    cpus.map(|cpu| cpu.to_string()).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// EAL as every test of this crate uses it.
    pub(crate) fn eal() -> Eal {
        let options = EalOptions { hugepages: Hugepages::Off, memory_mib: 128, name: "forebay-test".into() };
        Eal::start(&options).unwrap()
    }

    #[test]
    fn starts_once_and_leaves_the_affinity_alone() {
        let before = cpu_list(&affinity());
        let eal = eal();
        assert_eq!(cpu_list(&affinity()), before);
        assert!(!eal.uses_hugepages());
        assert!(eal.tsc_hz() > 1_000_000, "{} Hz", eal.tsc_hz());
        assert!(eal.start_time() > Duration::ZERO);
        let again = EalOptions { hugepages: Hugepages::Off, memory_mib: 128, name: "forebay-test".into() };
        assert!(Eal::start(&again).is_ok());
        let other = EalOptions { memory_mib: 64, ..again };
        assert_eq!(Eal::start(&other).unwrap_err(), EalError::AlreadyStarted);
        // SAFETY: reads two facts of a running EAL.
        let (ports, huge) = unsafe { (sys::fb_port_count(), sys::fb_eal_has_hugepages()) };
        assert_eq!((ports, huge), (0, 0), "the host's devices stay with the host");
    }

    #[test]
    fn bad_options_are_named() {
        let options = EalOptions { memory_mib: 1, ..EalOptions::default() };
        assert_eq!(Eal::start(&options).unwrap_err(), EalError::BadMemory(1));
        let options = EalOptions { name: "a b".into(), ..EalOptions::default() };
        assert_eq!(Eal::start(&options).unwrap_err(), EalError::BadName("a b".into()));
    }

    #[test]
    fn threads_join_and_leave() {
        let eal = eal();
        // More rounds than DPDK has identities: each must come back.
        for _ in 0..300 {
            std::thread::spawn(move || {
                let outer = eal.register_thread().unwrap();
                let inner = eal.register_thread().unwrap();
                assert!(outer.owned && !inner.owned);
                // SAFETY: EAL runs.
                assert_ne!(unsafe { sys::fb_lcore_id() }, u32::MAX);
            })
            .join()
            .unwrap();
        }
    }
}
