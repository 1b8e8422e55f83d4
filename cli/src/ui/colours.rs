//! The colours of progress on a terminal, and `BUILDKIT_COLORS`, which sets them.

use std::fmt;

/// What has a colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Colours {
    /// Steps that are done.
    pub run: Colour,
    /// Steps that were cancelled.
    pub cancel: Colour,
    /// Warnings.
    pub warning: Colour,
    /// Steps that failed.
    pub error: Colour,
}

/// One colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// One of the terminal's own: the number that sets it.
    Own(u8),
    /// Red, green and blue.
    Rgb(u8, u8, u8),
}

impl Default for Colours {
    fn default() -> Colours {
        Colours {
            run: Colour::Own(34),
            cancel: Colour::Own(33),
            warning: Colour::Own(33),
            error: Colour::Own(31),
        }
    }
}

/// The parameters of the sequence that sets the colour.
impl fmt::Display for Colour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Colour::Own(number) => write!(f, "{number}"),
            Colour::Rgb(red, green, blue) => write!(f, "38;2;{red};{green};{blue}"),
        }
    }
}

impl Colours {
    /// Reads `run=green:error=255,0,0`; whatever of it means nothing is left out, as BuildKit does.
    pub fn parse(text: &str) -> Colours {
        let mut colours = Colours::default();
        for part in text.split(':') {
            let Some((name, value)) = part.split_once('=') else {
                continue;
            };
            let place = match name.trim().to_ascii_lowercase().as_str() {
                "run" => &mut colours.run,
                "cancel" => &mut colours.cancel,
                "warning" => &mut colours.warning,
                "error" => &mut colours.error,
                _ => continue,
            };
            if let Some(colour) = Colour::parse(value.trim()) {
                *place = colour;
            }
        }
        colours
    }
}

impl Colour {
    fn parse(text: &str) -> Option<Colour> {
        let own = match text.to_ascii_lowercase().as_str() {
            "black" => 30,
            "red" => 31,
            "green" => 32,
            "yellow" => 33,
            "blue" => 34,
            "magenta" => 35,
            "cyan" => 36,
            "white" => 37,
            _ => return Colour::parse_rgb(text),
        };
        Some(Colour::Own(own))
    }

    fn parse_rgb(text: &str) -> Option<Colour> {
        let mut parts = text.split(',').map(|part| part.trim().parse().ok());
        let colour = Colour::Rgb(parts.next()??, parts.next()??, parts.next()??);
        parts.next().is_none().then_some(colour)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_as_buildkit_reads_them() {
        let found = Colours::parse("run=123,20,245:error=yellow:cancel=:nonsense:warning=1,2");
        assert_eq!(found.run.to_string(), "38;2;123;20;245");
        assert_eq!(found.error, Colour::Own(33));
        let Colours {
            cancel, warning, ..
        } = Colours::default();
        assert_eq!((found.cancel, found.warning), (cancel, warning));
    }
}
