//! The lines at the bottom of a terminal that are drawn over again and again, and what scrolls away above them.

use super::text::width;

/// What of the screen is ours to draw over.
#[derive(Debug, Default)]
pub struct Region {
    /// The lines that stand there, each narrower than the screen was.
    drawn: Vec<String>,
}

impl Region {
    /// Replaces the lines by `live`, with `permanent` above them, which stays. Everything is one text, so that a terminal
    /// shows it at once, and nothing where nothing has changed.
    ///
    /// A terminal that became narrower has wrapped what stood there: `columns` tells over how many rows.
    pub fn draw(&mut self, permanent: &str, live: Vec<String>, columns: usize) -> String {
        if permanent.is_empty() && live == self.drawn {
            return String::new();
        }
        let rows: usize = self
            .drawn
            .iter()
            .map(|line| visible_width(line).div_ceil(columns.max(1)).max(1))
            .sum();
        // Held back until it is complete, and without a cursor that runs over the screen.
        let mut text = String::from("\x1b[?2026h\x1b[?25l");
        if rows > 0 {
            text.push_str(&format!("\x1b[{rows}A\r"));
        }
        if !permanent.is_empty() {
            // It may be wider than the screen, so that what stands there would show through.
            text.push_str("\x1b[J");
            text.push_str(permanent);
        }
        for line in &live {
            text.push_str(line);
            text.push_str("\x1b[K\n");
        }
        text.push_str("\x1b[J\x1b[?25h\x1b[?2026l");
        self.drawn = live;
        text
    }
}

/// Columns of a line that has colours of ours in it.
fn visible_width(line: &str) -> usize {
    let mut parts = line.split('\x1b');
    let first = parts.next().map_or(0, width);
    let coloured = parts.map(|part| part.split_once('m').map_or(0, |(_, text)| width(text)));
    first + coloured.sum::<usize>()
}
