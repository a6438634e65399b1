//! `forebay top`: the figures of `forebay pipeline show` and the ports' rates, live.
//!
//! Samples, keys and signals come in over channels to one loop that draws, so that a daemon that does not answer holds up
//! nothing. Invariant: however the view ends, the terminal is as it was before.

mod draw;
mod view;

use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use forebay_api::client::{self, Client};
use forebay_api::v1::{GetPipelineRequest, GetStatsRequest};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{self, Receiver};
use tokio::time::{MissedTickBehavior, interval, timeout};

use self::draw::{Screen, draw};
use self::view::{Sample, TopView};
use super::failure::Failure;
use super::{Form, Out, write_json};

/// How long a daemon may take to answer before the view says that it does not.
const PATIENCE: Duration = Duration::from_secs(5);

/// Keys that wait while a frame is drawn; more than a person types meanwhile.
const KEYS: usize = 64;

/// Lines that a page key scrolls.
const PAGE_LINES: u16 = 10;

#[derive(Clone, Debug, Args)]
pub struct TopArgs {
    /// Time between two samples, in milliseconds.
    // Asking more often than ten times a second would be work for the daemon, and nothing that an eye can follow.
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(100..=3_600_000))]
    interval_ms: u64,
    /// End after so many intervals; never where it is not said.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    #[command(flatten)]
    form: Form,
}

/// Shows the figures until the user has seen enough.
///
/// # Errors
/// Standard output is no terminal and JSON is not wanted, nobody listens behind the socket, or the output fails. As JSON
/// also: the daemon goes away.
pub async fn execute(socket: &Path, args: TopArgs, out: &mut Out<'_>) -> Result<(), Failure> {
    if !args.form.json && !io::stdout().is_terminal() {
        return Err(Failure::NoTerminal);
    }
    let client = client::connect(socket).await?;
    let samples = start_sampling(client, Duration::from_millis(args.interval_ms));
    if args.form.json {
        write_lines(samples, args.count, out).await
    } else {
        watch(samples, args.count).await
    }
}

/// Asks the daemon once every interval. A connection that is lost is made again by the next question.
fn start_sampling(mut client: Client, every: Duration) -> Receiver<Result<Sample, Failure>> {
    let (samples, taken) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let late = || {
                let seconds = PATIENCE.as_secs();
                Err(tonic::Status::deadline_exceeded(format!("no answer within {seconds} s")).into())
            };
            let sampled = timeout(PATIENCE, sample(&mut client)).await.unwrap_or_else(|_| late());
            if samples.send(sampled).await.is_err() {
                return;
            }
        }
    });
    taken
}

async fn sample(client: &mut Client) -> Result<Sample, Failure> {
    let stats = client.stats.get(GetStatsRequest::default()).await?.into_inner();
    let pipeline = client.stats.pipeline(GetPipelineRequest {}).await?.into_inner();
    Ok(Sample { stats, pipeline, at: Instant::now() })
}

/// One line of JSON for each interval.
async fn write_lines(
    mut samples: Receiver<Result<Sample, Failure>>,
    mut left: Option<u64>,
    out: &mut Out<'_>,
) -> Result<(), Failure> {
    let mut before = None;
    while left != Some(0) {
        let Some(after) = samples.recv().await else { return Ok(()) };
        let after = after?;
        if before.is_some() {
            write_json(out, &TopView::new(before.as_ref(), &after))?;
            // Whoever reads them wants them now.
            out.flush()?;
            left = left.map(|left| left - 1);
        }
        before = Some(after);
    }
    Ok(())
}

/// The full-screen view.
async fn watch(mut samples: Receiver<Result<Sample, Failure>>, count: Option<u64>) -> Result<(), Failure> {
    let mut ended = start_heeding()?;
    let mut terminal = FullScreen::open()?;
    let mut keys = start_listening()?;
    let (mut screen, mut figures) = (Screen::default(), Figures::default());
    loop {
        terminal.0.draw(|frame| draw(frame, figures.view().as_ref(), &mut screen))?;
        tokio::select! {
            key = keys.recv() => match key {
                Some(Ok(event)) if press(&mut screen, &event) => {}
                Some(Err(error)) => return Err(error.into()),
                _ => return Ok(()),
            },
            sampled = samples.recv() => match sampled {
                Some(Ok(sample)) => {
                    // Each interval is shown for as long as it took.
                    if Some(figures.intervals) == count {
                        return Ok(());
                    }
                    screen.lost = None;
                    figures.take(sample, screen.paused);
                }
                Some(Err(failure)) => screen.lost = Some(failure.to_string()),
                None => return Ok(()),
            },
            _ = ended.recv() => return Ok(()),
        }
    }
}

/// The samples that are shown, and the newest one.
#[derive(Default)]
struct Figures {
    shown: Option<(Option<Rc<Sample>>, Rc<Sample>)>,
    newest: Option<Rc<Sample>>,
    /// Intervals that were taken.
    intervals: u64,
}

impl Figures {
    /// Takes a sample; while the view is paused, only to count from it later.
    fn take(&mut self, sample: Sample, is_paused: bool) {
        let sample = Rc::new(sample);
        let before = self.newest.replace(sample.clone());
        self.intervals += u64::from(before.is_some());
        if !is_paused {
            self.shown = Some((before, sample));
        }
    }

    fn view(&self) -> Option<TopView<'_>> {
        let (before, after) = self.shown.as_ref()?;
        Some(TopView::new(before.as_deref(), after))
    }
}

/// Does what a key says. False where it says to end.
fn press(screen: &mut Screen, event: &Event) -> bool {
    let Event::Key(KeyEvent { code, modifiers, kind, .. }) = event else { return true };
    if *kind == KeyEventKind::Release {
        return true;
    }
    match code {
        KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => return false,
        KeyCode::Char('q') | KeyCode::Esc => return false,
        KeyCode::Char('p') => screen.paused = !screen.paused,
        KeyCode::Char('s') => screen.order = screen.order.next(),
        KeyCode::Up => screen.scroll = screen.scroll.saturating_sub(1),
        KeyCode::Down => screen.scroll = screen.scroll.saturating_add(1),
        KeyCode::PageUp => screen.scroll = screen.scroll.saturating_sub(PAGE_LINES),
        KeyCode::PageDown => screen.scroll = screen.scroll.saturating_add(PAGE_LINES),
        _ => {}
    }
    true
}

/// Signals that would end the process with the terminal still ours.
fn start_heeding() -> Result<Receiver<()>, Failure> {
    let (told, ended) = mpsc::channel(1);
    let kinds = [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt(), SignalKind::quit()];
    for kind in kinds {
        let (mut signals, told) = (signal(kind).map_err(Failure::Runtime)?, told.clone());
        tokio::spawn(async move {
            signals.recv().await;
            // Where nobody listens any more, the view has ended already.
            let _ = told.send(()).await;
        });
    }
    Ok(ended)
}

/// Keys and changes of the terminal's size, read by a thread of their own: the read blocks. It ends with the process.
fn start_listening() -> Result<Receiver<io::Result<Event>>, Failure> {
    let (events, heard) = mpsc::channel(KEYS);
    let listen = move || {
        loop {
            let event = event::read();
            let is_over = event.is_err();
            if events.blocking_send(event).is_err() || is_over {
                return;
            }
        }
    };
    thread::Builder::new().name("keys".into()).spawn(listen).map_err(Failure::Runtime)?;
    Ok(heard)
}

/// The terminal while it is ours. Dropped, it is the shell's again; ratatui's hook does the same before a panic is told.
struct FullScreen(DefaultTerminal);

impl FullScreen {
    fn open() -> io::Result<Self> {
        match ratatui::try_init() {
            Ok(terminal) => Ok(Self(terminal)),
            Err(error) => {
                // It may have got half-way.
                let _ = ratatui::try_restore();
                Err(error)
            }
        }
    }
}

impl Drop for FullScreen {
    fn drop(&mut self) {
        // Where the terminal is gone there is nothing to restore, and nobody to tell.
        let _ = self.0.show_cursor();
        let _ = ratatui::try_restore();
    }
}

#[cfg(test)]
mod tests {
    use super::view::Order;
    use super::view::tests::sample;
    use super::*;

    fn key(code: KeyCode, modifiers: KeyModifiers) -> Event {
        Event::Key(KeyEvent::new(code, modifiers))
    }

    #[test]
    fn keys_do_what_the_footer_says() {
        let mut screen = Screen::default();
        let mut pressed = |code| press(&mut screen, &key(code, KeyModifiers::NONE));
        for code in [KeyCode::Up, KeyCode::Down, KeyCode::PageDown, KeyCode::Char('s'), KeyCode::Char('p')] {
            assert!(pressed(code), "{code:?}");
        }
        assert!(!pressed(KeyCode::Char('q')) && !pressed(KeyCode::Esc) && pressed(KeyCode::Char('c')));
        assert_eq!((screen.scroll, screen.order, screen.paused), (1 + PAGE_LINES, Order::Received, true));
        assert!(!press(&mut screen, &key(KeyCode::Char('c'), KeyModifiers::CONTROL)));
        assert!(press(&mut screen, &Event::Resize(80, 24)));
    }

    #[test]
    fn a_paused_view_stands_still_and_goes_on_from_the_newest_sample() {
        let mut figures = Figures::default();
        assert!(figures.view().is_none());
        figures.take(sample(1), false);
        figures.take(sample(2), false);
        figures.take(sample(5), true);
        assert_eq!(figures.view().unwrap().uptime_ns, 2_000_000_000);
        figures.take(sample(6), false);
        let view = figures.view().unwrap();
        assert_eq!((view.uptime_ns, view.ports["vm1"].rx_packets_per_second), (6_000_000_000, 10.0));
        assert_eq!(view.pipeline.workers[0].stages[0].packets, 100);
        assert_eq!(figures.intervals, 3);
    }
}
