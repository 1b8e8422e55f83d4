//! Aligned columns, spaced as docker spaces them.

/// Smallest width of a column, and the space behind its widest cell: docker's numbers.
const WIDTH_MIN: usize = 10;
const PADDING: usize = 3;

/// Lays out rows below their headings; the last column is not padded.
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = headings.iter().map(|heading| heading.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let headings = headings.iter().copied();
    let mut text = line(headings, &widths);
    for row in rows {
        text.push_str(&line(row.iter().map(String::as_str), &widths));
    }
    text
}

fn line<'a>(cells: impl Iterator<Item = &'a str>, widths: &[usize]) -> String {
    let mut text = String::new();
    for (column, cell) in cells.enumerate() {
        text.push_str(cell);
        if column + 1 < widths.len() {
            let width = (widths[column] + PADDING).max(WIDTH_MIN);
            let missing = width.saturating_sub(cell.chars().count());
            text.extend(std::iter::repeat_n(' ', missing));
        }
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [
            vec!["a".to_owned(), "1".to_owned()],
            vec!["a longer name".to_owned(), "2".to_owned()],
        ];
        let text = table(&["NAME", "N"], &rows);
        assert_eq!(
            text,
            "NAME            N\na               1\na longer name   2\n"
        );
    }
}
