//! A set of strings with numbers, searched for all that a text begins with.

use std::collections::VecDeque;

/// Nodes in breadth-first order, so that the children of one are neighbours, sorted by their byte.
pub struct Trie {
    nodes: Vec<Node>,
}

struct Node {
    /// The byte that leads here.
    byte: u8,
    children: u16,
    first_child: u32,
    /// The number of the string that ends here.
    value: Option<u32>,
}

impl Trie {
    /// Of distinct strings, none of them empty.
    pub fn new<'a>(strings: impl Iterator<Item = (&'a str, u32)>) -> Self {
        let mut sorted: Vec<(&[u8], u32)> = strings.map(|(text, value)| (text.as_bytes(), value)).collect();
        sorted.sort();
        let mut nodes = vec![Node { byte: 0, children: 0, first_child: 0, value: None }];
        // A node, the strings below it, and the bytes that they share.
        let mut open = VecDeque::from([(0, &sorted[..], 0)]);
        while let Some((at, mut below, depth)) = open.pop_front() {
            if let Some((text, value)) = below.first()
                && text.len() == depth
            {
                nodes[at].value = Some(*value);
                below = &below[1..];
            }
            nodes[at].first_child = nodes.len() as u32;
            for group in below.chunk_by(|a, b| a.0[depth] == b.0[depth]) {
                open.push_back((nodes.len(), group, depth + 1));
                nodes.push(Node { byte: group[0].0[depth], children: 0, first_child: 0, value: None });
                nodes[at].children += 1;
            }
        }
        Self { nodes }
    }

    /// The strings that `text` begins with, shortest first, as lengths and numbers.
    pub fn prefixes<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = (usize, u32)> + 'a {
        let (mut node, mut length) = (&self.nodes[0], 0);
        std::iter::from_fn(move || {
            loop {
                let byte = text.get(length)?;
                let first = node.first_child as usize;
                let children = &self.nodes[first..first + usize::from(node.children)];
                node = &children[children.binary_search_by_key(byte, |child| child.byte).ok()?];
                length += 1;
                if let Some(value) = node.value {
                    return Some((length, value));
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prefix_is_found() {
        let trie = Trie::new([("bc", 0), ("a", 1), ("abc", 2), ("abd", 3), ("ä", 4)].into_iter());
        let found = |text: &str| trie.prefixes(text.as_bytes()).collect::<Vec<_>>();
        assert_eq!(found("abcd"), [(1, 1), (3, 2)]);
        assert_eq!(found("ä"), [(2, 4)]);
        assert_eq!(found("b"), []);
        assert_eq!(found(""), []);
        assert_eq!(Trie::new(std::iter::empty()).prefixes(b"a").count(), 0);
    }
}
