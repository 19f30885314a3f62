//! Who names what: the product's files as a graph, read from their words.
//!
//! A file points at another one when it names something that the other one *defines*. Names are followed through
//! re-exports, so a `mod.rs` that only declares its children and hands their names on points at none of them. One that
//! names a child's things itself, and defines what that child names, makes a circle with it, as any two files would.
//! Methods are not followed (that would take types), and what only tests name does not count.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// From a file to another one, with the names.
pub(crate) type Edges = BTreeMap<(PathBuf, PathBuf), BTreeSet<String>>;

/// The files that `src/lib.rs` leads to, by their place in the tree of modules.
pub(crate) struct Product {
    files: BTreeMap<Vec<String>, File>,
}

/// What is to be known of one.
#[derive(Default)]
pub(crate) struct File {
    pub(crate) path: PathBuf,
    uses: Vec<Use>,
    children: Vec<String>,
    defined: BTreeSet<String>,
    /// `pub` functions, constants and statics, outside of modules within the file.
    pub(crate) offered: BTreeSet<String>,
    /// Name, type and value of each constant.
    pub(crate) constants: Vec<[String; 3]>,
    /// Every word, and every path of more than one word, outside of `use`.
    pub(crate) words: BTreeSet<String>,
    paths: BTreeSet<Vec<String>>,
}

struct Use {
    path: Vec<String>,
    name: String,
    is_public: bool,
}

impl Product {
    pub(crate) fn new(sources: &BTreeMap<PathBuf, String>) -> Self {
        let mut files = BTreeMap::new();
        let mut open = vec![(vec!["crate".to_owned()], PathBuf::from("src/lib.rs"))];
        while let Some((module, path)) = open.pop() {
            let Some(source) = sources.get(&path) else { panic!("{} is missing", path.display()) };
            let file = File::new(path, source);
            for child in &file.children {
                let folder = if file.path.ends_with("mod.rs") || file.path.ends_with("lib.rs") {
                    file.path.parent().unwrap_or(Path::new("")).to_owned()
                } else {
                    file.path.with_extension("")
                };
                let places = [folder.join(format!("{child}.rs")), folder.join(child).join("mod.rs")];
                let place = places.into_iter().find(|place| sources.contains_key(place));
                let place = place.unwrap_or_else(|| panic!("{}: mod {child} is nowhere", file.path.display()));
                open.push(([&module[..], std::slice::from_ref(child)].concat(), place));
            }
            files.insert(module, file);
        }
        Self { files }
    }

    pub(crate) fn files(&self) -> impl Iterator<Item = &File> {
        self.files.values()
    }

    /// Does no other file name that?
    pub(crate) fn is_named_nowhere_else(&self, name: &str, home: &File) -> bool {
        self.files().filter(|file| file.path != home.path).all(|file| {
            !file.words.contains(name) && !file.uses.iter().any(|named| named.path.iter().any(|word| word == name))
        })
    }

    pub(crate) fn edges(&self) -> Edges {
        let mut edges = Edges::new();
        for (module, file) in &self.files {
            let mut known: BTreeMap<&str, Vec<String>> = BTreeMap::new();
            for Use { path, name, is_public } in &file.uses {
                let Some(path) = self.absolute(path, module) else { continue };
                known.insert(name, path.clone());
                if !is_public || file.words.contains(name) {
                    self.add(&mut edges, file, &path);
                }
            }
            for path in &file.paths {
                let path = match known.get(&*path[0]) {
                    Some(known) => Some([&known[..], &path[1..]].concat()),
                    None => self.absolute(path, module),
                };
                if let Some(path) = path {
                    self.add(&mut edges, file, &path);
                }
            }
        }
        edges
    }

    fn add(&self, edges: &mut Edges, from: &File, path: &[String]) {
        if let Some((to, name)) = self.home(path, 0)
            && to.path != from.path
        {
            edges.entry((from.path.clone(), to.path.clone())).or_default().insert(name);
        }
    }

    /// From `crate` on; `None` for what is another crate's.
    fn absolute(&self, path: &[String], module: &[String]) -> Option<Vec<String>> {
        let up = path.iter().take_while(|word| *word == "super").count();
        match path[0].as_str() {
            "crate" => Some(path.to_vec()),
            "self" => Some([module, &path[1..]].concat()),
            "super" => Some([&module[..module.len() - up], &path[up..]].concat()),
            first if self.files.get(module)?.children.iter().any(|child| child == first) => {
                Some([module, path].concat())
            }
            _ => None,
        }
    }

    /// The file that defines it, and its name there; `None` for a module as such.
    fn home<'a>(&'a self, path: &'a [String], hops: u8) -> Option<(&'a File, String)> {
        let depth = (1..=path.len()).rev().find(|depth| self.files.contains_key(&path[..*depth]))?;
        let file = &self.files[&path[..depth]];
        let name = path.get(depth)?;
        let handed_on = file.uses.iter().find(|named| named.name == *name);
        match handed_on.filter(|_| !file.defined.contains(name) && hops < 8) {
            Some(named) => {
                let rest = [&self.absolute(&named.path, &path[..depth])?[..], &path[depth + 1..]].concat();
                self.home(&rest, hops + 1).map(|(file, name)| (self.same(file), name))
            }
            None => Some((file, name.clone())),
        }
    }

    /// The same file, borrowed for as long as the product.
    fn same(&self, file: &File) -> &File {
        self.files().find(|other| other.path == file.path).unwrap_or_else(|| unreachable!("it is one of them"))
    }
}

/// Those of the edges that lie on a circle, of any size.
pub(crate) fn circles(edges: &Edges) -> Edges {
    let mut next: BTreeMap<&Path, Vec<&Path>> = BTreeMap::new();
    for (from, to) in edges.keys() {
        next.entry(from).or_default().push(to);
    }
    let leads_to = |from: &Path, wanted: &Path| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(at) = open.pop() {
            if at == wanted {
                return true;
            }
            if seen.insert(at.to_owned()) {
                open.extend(next.get(at).into_iter().flatten());
            }
        }
        false
    };
    let on_circle = |((from, to), _): &(&(PathBuf, PathBuf), &BTreeSet<String>)| leads_to(to, from);
    edges.iter().filter(on_circle).map(|(edge, names)| (edge.clone(), names.clone())).collect()
}

impl File {
    fn new(path: PathBuf, source: &str) -> Self {
        let tokens = without_tests(&tokens(source));
        let mut file = Self { path, ..Self::default() };
        let (mut at, mut inner) = (0, 0_usize);
        while let Some(token) = tokens.get(at) {
            match token.as_str() {
                "use" => at = file.read_use(&tokens, at),
                "mod" if tokens.get(at + 2).is_some_and(|end| end == ";") => {
                    at += 1;
                    file.children.push(tokens[at].clone());
                }
                "mod" => inner = inner.max(end_of_item(&tokens, at)),
                "fn" | "struct" | "enum" | "const" | "static" | "type" | "trait" | "union" => {
                    file.read_definition(&tokens, at, at < inner);
                }
                _ if is_word(token) => file.read_words(&tokens, at),
                _ => {}
            }
            at += 1;
        }
        file
    }

    /// Returns where it ends.
    fn read_use(&mut self, tokens: &[String], at: usize) -> usize {
        let end = at + tokens[at..].iter().position(|token| token == ";").unwrap_or(0);
        let is_public = is_offered(tokens, at);
        self.read_tree(&tokens[at + 1..end], &[], is_public);
        end
    }

    fn read_tree(&mut self, tree: &[String], before: &[String], is_public: bool) {
        let mut path = before.to_vec();
        let mut at = 0;
        while at < tree.len() {
            match tree[at].as_str() {
                "::" => {}
                "{" => {
                    for part in parts(&tree[at + 1..tree.len() - 1]) {
                        self.read_tree(part, &path, is_public);
                    }
                    return;
                }
                "as" => break,
                word => path.push(word.to_owned()),
            }
            at += 1;
        }
        if path.last().is_some_and(|last| last == "self") && path.len() > 1 {
            path.pop();
        }
        if let Some(name) = tree.get(at + 1).or(path.last()).cloned() {
            self.uses.push(Use { path, name, is_public });
        }
    }

    fn read_definition(&mut self, tokens: &[String], at: usize, within: bool) {
        let Some(name) = tokens.get(at + 1).filter(|name| is_word(name) && *name != "fn") else { return };
        self.defined.insert(name.clone());
        let kind = tokens[at].as_str();
        let is_offered = is_offered(tokens, at);
        if is_offered && !within && matches!(kind, "fn" | "const" | "static") {
            self.offered.insert(name.clone());
        }
        let end = end_of_item(tokens, at);
        let sign = tokens[at..end].iter().position(|token| token == "=").map(|sign| at + sign);
        if let Some(sign) = sign.filter(|_| matches!(kind, "const" | "static") && tokens[at + 2] == ":") {
            self.constants.push([name.clone(), tokens[at + 3..sign].concat(), tokens[sign + 1..end].concat()]);
        }
    }

    fn read_words(&mut self, tokens: &[String], at: usize) {
        self.words.insert(tokens[at].clone());
        if at > 0 && tokens[at - 1] == "::" {
            return;
        }
        let more =
            tokens[at + 1..].chunks(2).take_while(|pair| pair[0] == "::" && pair.get(1).is_some_and(|w| is_word(w)));
        let more: Vec<String> = more.map(|pair| pair[1].clone()).collect();
        if !more.is_empty() {
            self.paths.insert([&[tokens[at].clone()][..], &more].concat());
        }
    }
}

/// Is what begins there `pub`, in whatever degree?
fn is_offered(tokens: &[String], at: usize) -> bool {
    let before = tokens[..at].iter().rev().skip_while(|token| matches!(token.as_str(), "const" | "async"));
    let before: Vec<&str> = before.take(5).map(String::as_str).collect();
    match before.as_slice() {
        ["pub", ..] => true,
        [")", rest @ ..] => {
            rest.iter().take_while(|token| **token != "(").count() + 1 < rest.len() && {
                let open = rest.iter().position(|token| *token == "(").unwrap_or(0);
                rest.get(open + 1) == Some(&"pub")
            }
        }
        _ => false,
    }
}

/// What stands between the commas of a list.
fn parts(list: &[String]) -> Vec<&[String]> {
    let (mut depth, mut from, mut found) = (0_usize, 0, Vec::new());
    for (at, token) in list.iter().enumerate() {
        match token.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            "," if depth == 0 => {
                found.push(&list[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    found.push(&list[from..]);
    found.retain(|part| !part.is_empty());
    found
}

/// Where the item that begins there ends: behind its braces, or at its semicolon, or, for a field, at its comma.
fn end_of_item(tokens: &[String], at: usize) -> usize {
    let mut depth = 0_usize;
    for (offset, token) in tokens[at..].iter().enumerate() {
        match token.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => {
                depth = depth.saturating_sub(1);
                if depth == 0 && token == "}" {
                    return at + offset;
                }
            }
            ";" | "," if depth == 0 => return at + offset,
            _ => {}
        }
    }
    tokens.len()
}

/// Without what stands below `#[cfg(test)]`.
fn without_tests(tokens: &[String]) -> Vec<String> {
    const MARK: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let (mut left, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        if tokens[at..].iter().take(MARK.len()).eq(MARK) {
            at += MARK.len();
            // Further attributes end with a bracket, and the item stands behind them.
            while tokens.get(at).is_some_and(|token| token == "#") {
                at += 1 + tokens[at..].iter().position(|token| token == "]").unwrap_or(0);
            }
            at = end_of_item(tokens, at) + 1;
        } else {
            left.push(tokens[at].clone());
            at += 1;
        }
    }
    left
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Words, numbers, `::`, and single signs; texts are kept as one, comments and lifetimes are not.
fn tokens(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let length = if first.is_whitespace() {
            first.len_utf8()
        } else if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if let Some(length) = text(rest) {
            found.push(rest[..length].to_owned());
            length
        } else if first == '\'' {
            let lifetime = rest[1..].find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(0);
            1 + lifetime
        } else {
            let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            let length = if word > 0 {
                word
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            found.push(rest[..length].to_owned());
            length
        };
        rest = &rest[length..];
    }
    found
}

/// How long the text or character is that begins here; `None` when none does.
fn text(rest: &str) -> Option<usize> {
    let marks = rest.trim_start_matches(['b', 'c']);
    let before = rest.len() - marks.len();
    if let Some(raw) = marks.strip_prefix('r') {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let inner = &raw[hashes + 1..];
            return Some(before + 1 + hashes + 1 + inner.find(&end).unwrap_or(inner.len()) + end.len());
        }
    }
    let quote = marks.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let mut escaped = false;
    for (at, c) in marks.char_indices().skip(1) {
        // A character is one, or an escape; else it is a lifetime.
        if quote == '\'' && !marks[1..].starts_with('\\') && at > 1 && c != '\'' {
            return None;
        }
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(before + at + 1),
            _ => {}
        }
    }
    None
}
