//! WGSL preprocessor: constants become `const` declarations, and directives are expanded.
//!
//! `@unroll for (var i = 0u; i < BOUND; i++) { … }` repeats its block with `i` replaced by each value; BOUND is a literal or a
//! constant. naga does not unroll loops, and an array indexed by a loop variable cannot live in registers.
//! `@unroll if NAME for …` leaves the loop rolled if the constant NAME is 0, because long shaders take seconds to compile.
//! Inside, `$i` expands to the value as part of an identifier.
//! `@declare for …` repeats declarations the same way at module scope: WGSL has no arrays of bindings.
//! `@if NAME { … } @else { … }` keeps the first block if the constant NAME is set and not 0, else the second (optional): for
//! declarations, types and features, where a plain `if` does not work.
//! `@unless NAME HEADER { … }` drops HEADER, a loop or a condition, if the constant NAME is set and not 0, and keeps the block.

/// Definitions shared by all kernels.
const PRELUDE: &str = include_str!("../../shaders/prelude.wgsl");

type Constants<'a> = &'a [(&'a str, u32)];

/// The complete WGSL text of a kernel: `enable` lines, a `const` per constant, the prelude, the expanded source.
pub(super) fn compose(source: &str, constants: Constants<'_>) -> Result<String, String> {
    let source = expand(source, constants)?;
    // WGSL requires `enable` before everything else.
    let (enables, rest): (Vec<&str>, Vec<&str>) = source.lines().partition(|line| line.starts_with("enable "));
    let mut text = enables.join("\n");
    for (name, value) in constants {
        text.push_str(&format!("\nconst {name}: u32 = {value}u;"));
    }
    text.push('\n');
    text.push_str(&expand(PRELUDE, constants)?);
    text.push_str(&rest.join("\n"));
    Ok(text)
}

fn expand(source: &str, constants: Constants<'_>) -> Result<String, String> {
    let directive =
        ["@unroll ", "@declare ", "@if ", "@unless "].iter().filter_map(|mark| source.find(mark).map(|at| (at, *mark))).min();
    let Some((start, mark)) = directive else {
        return Ok(source.to_string());
    };
    let (before, rest) = source.split_at(start);
    let (header, body, after) = block(&rest[mark.len()..])?;
    let mut text = before.to_string();
    let mut after = after;
    if mark == "@if " {
        let holds = is_set(header, constants);
        let mut chosen = if holds { body } else { "" };
        if let Some(tail) = after.trim_start().strip_prefix("@else") {
            let (_, otherwise, rest) = block(tail)?;
            after = rest;
            chosen = if holds { body } else { otherwise };
        }
        text.push_str(&expand(chosen, constants)?);
    } else if mark == "@unless " {
        let (name, header) = header.split_once(' ').ok_or("@unless: a name and a header expected")?;
        let header = if is_set(name, constants) { "" } else { header };
        text.push_str(&format!("{header} {{{}}}\n", expand(body, constants)?));
    } else if mark == "@declare " {
        text.push_str(&copies(header, body, constants)?.concat());
    } else {
        text.push_str(&unroll(header, body, constants)?);
    }
    text.push_str(&expand(after, constants)?);
    Ok(text)
}

fn is_set(name: &str, constants: Constants<'_>) -> bool {
    constants.iter().any(|(constant, value)| *constant == name && *value != 0)
}

/// The unrolled loop, or the rolled one if its condition is 0.
fn unroll(header: &str, body: &str, constants: Constants<'_>) -> Result<String, String> {
    let condition = header.strip_prefix("if ").and_then(|rest| rest.split_once(' '));
    let (unrolled, header) = condition.map_or((true, header), |(name, header)| (is_set(name, constants), header));
    if !unrolled {
        return Ok(format!("{header} {{{}}}\n", expand(body, constants)?));
    }
    Ok(copies(header, body, constants)?.iter().map(|copy| format!("{{{copy}}}\n")).collect())
}

/// The body of a loop with this header, once for each value of its variable.
fn copies(header: &str, body: &str, constants: Constants<'_>) -> Result<Vec<String>, String> {
    let (variable, count) = loop_header(header, constants)?;
    let copy = |i: u32| {
        let named = body.replace(&format!("${variable}"), &i.to_string());
        expand(&replace_word(&named, variable, &format!("{i}u")), constants)
    };
    (0..count).map(copy).collect()
}

/// Splits `HEADER { BODY } AFTER`.
fn block(text: &str) -> Result<(&str, &str, &str), String> {
    let open = text.find('{').ok_or("directive without a block")?;
    let close = matching_brace(text, open).ok_or("directive whose block does not end")?;
    Ok((text[..open].trim(), &text[open + 1..close], &text[close + 1..]))
}

/// Reads `for (var i = 0u; i < BOUND; i++)` as (`i`, BOUND's value).
fn loop_header<'a>(header: &'a str, constants: Constants<'_>) -> Result<(&'a str, u32), String> {
    let parse = || {
        let inside = header.strip_prefix("for (var ")?.strip_suffix(')')?;
        let (variable, rest) = inside.split_once(" = 0u; ")?;
        let bound = rest.strip_prefix(variable)?.strip_prefix(" < ")?.strip_suffix("++")?.strip_suffix(variable)?;
        let bound = bound.strip_suffix("; ")?;
        let value = constants.iter().find(|(name, _)| *name == bound).map(|(_, value)| *value);
        Some((variable, value.or_else(|| bound.trim_end_matches('u').parse().ok())?))
    };
    parse().ok_or_else(|| format!("@unroll: cannot read `{header}`"))
}

fn matching_brace(text: &str, open: usize) -> Option<usize> {
    let mut depth = 0;
    for (at, byte) in text.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

fn replace_word(text: &str, word: &str, with: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut result = String::with_capacity(text.len());
    let mut done = 0;
    for (at, _) in text.match_indices(word) {
        let end = at + word.len();
        if !text[..at].ends_with(|c| is_word(c) || c == '.') && !text[end..].starts_with(is_word) {
            result.push_str(&text[done..at]);
            result.push_str(with);
            done = end;
        }
    }
    result.push_str(&text[done..]);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(text: &str) -> String {
        text.split_whitespace().collect()
    }

    #[test]
    fn loops_are_written_out_with_nested_variables_replaced_as_words() {
        let source = "@unroll for (var i = 0u; i < N; i++) { @unroll for (var j = 0u; j < 2; j++) { x[i] = if_i.i + j; } }";
        let text = expand(source, &[("N", 2)]).expect("unrolls");
        assert_eq!(flat(&text), "{{x[0u]=if_i.i+0u;}{x[0u]=if_i.i+1u;}}{{x[1u]=if_i.i+0u;}{x[1u]=if_i.i+1u;}}");
    }

    #[test]
    fn identifiers_that_end_in_the_variable_twice_stay() {
        let text = expand("@unroll for (var c = 0u; c < 1u; c++) { acc[c] += ccc[c] + v.cc + cc; }", &[]).expect("unrolls");
        assert_eq!(flat(&text), "{acc[0u]+=ccc[0u]+v.cc+cc;}");
    }

    #[test]
    fn a_loop_with_a_condition_stays_where_that_is_not_set() {
        let source = "@unroll if X for (var i = 0u; i < N; i++) { @unroll for (var j = 0u; j < 1; j++) { x[i] = j; } }";
        assert_eq!(flat(&expand(source, &[("N", 1), ("X", 0)]).expect("stays")), "for(vari=0u;i<N;i++){{x[i]=0u;}}");
        assert_eq!(flat(&expand(source, &[("N", 1), ("X", 1)]).expect("unrolls")), "{{x[0u]=0u;}}");
    }

    #[test]
    fn conditions_choose_their_block() {
        let source = "a @if X { b { c } } @else { d } e @if Y { f } g";
        assert_eq!(flat(&expand(source, &[("X", 1)]).expect("expands")), "ab{c}eg");
        assert_eq!(flat(&expand(source, &[("X", 0), ("Y", 2)]).expect("expands")), "adefg");
    }

    #[test]
    fn declarations_are_repeated_with_numbered_names() {
        let source = "@declare for (var k = 0u; k < N; k++) { var w$k: f32; } fn f() { @unroll for (var k = 0u; k < N; k++) { w$k = k; } }";
        let text = expand(source, &[("N", 2)]).expect("expands");
        assert_eq!(flat(&text), "varw0:f32;varw1:f32;fnf(){{w0=0u;}{w1=1u;}}");
    }

    #[test]
    fn a_loop_it_cannot_read_is_an_error() {
        let error = expand("@unroll for (var i = 1u; i < 4u; i++) { }", &[]).expect_err("starts at one");
        assert!(error.contains("i = 1u"), "{error}");
    }
}
