//! JSON text written piece by piece.

/// Writes one JSON object.
pub(super) struct Object<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

impl<'a> Object<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Object { out, first: true }
    }

    /// Where the key's value is to be written.
    pub(super) fn value(&mut self, key: &str) -> &mut Vec<u8> {
        self.key(key);
        self.out
    }

    fn key(&mut self, key: &str) {
        if !std::mem::take(&mut self.first) {
            self.out.push(b',');
        }
        write_string(key, self.out);
        self.out.push(b':');
    }

    pub(super) fn text(&mut self, key: &str, value: &str) {
        self.key(key);
        write_string(value, self.out);
    }

    pub(super) fn number(&mut self, key: &str, value: u64) {
        self.key(key);
        write_number(value, self.out);
    }

    /// `value` is JSON text.
    pub(super) fn raw(&mut self, key: &str, value: &str) {
        self.key(key);
        self.out.extend_from_slice(value.as_bytes());
    }

    /// Everything in an object that serde writes.
    pub(super) fn members(&mut self, value: &impl serde::Serialize) {
        let json = serde_json::to_string(value).unwrap_or_default();
        if let Some(members) = json.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'))
            && !members.is_empty()
        {
            if !std::mem::take(&mut self.first) {
                self.out.push(b',');
            }
            self.out.extend_from_slice(members.as_bytes());
        }
    }

    pub(super) fn end(self) {
        self.out.push(b'}');
    }
}

pub(super) fn write_string(text: &str, out: &mut Vec<u8>) {
    // Writing JSON of a &str into a Vec cannot fail.
    let written = serde_json::to_writer(&mut *out, text);
    debug_assert!(written.is_ok(), "writing a string into memory failed");
}

pub(super) fn write_number(number: u64, out: &mut Vec<u8>) {
    let written = serde_json::to_writer(&mut *out, &number);
    debug_assert!(written.is_ok(), "writing a number into memory failed");
}

/// How deeply a valid JSON text is nested: 0 for a plain value.
pub(super) fn depth(json: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0usize, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::depth;

    #[test]
    fn brackets_in_strings_are_not_nesting() {
        for (json, expected) in
            [("1", 0), (r#""[[[""#, 0), ("[]", 1), (r#"{"a":["\"]}",{"b":1}]}"#, 3), ("[[],[[]]]", 3), (r#"["\\",[]]"#, 2)]
        {
            assert_eq!(depth(json), expected, "{json}");
        }
    }
}
