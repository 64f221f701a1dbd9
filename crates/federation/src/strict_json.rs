//! JSON as this protocol reads it: one spelling of a structure, and the place of a fault by name.
//!
//! serde's derived readers take a JSON array where a struct is meant; here a struct is an object, always.
//! Unknown and duplicate members are refused by the derived readers themselves (`deny_unknown_fields`), so
//! nothing here ever goes through a map that keeps the last of two.

use std::{cell::RefCell, fmt};

use serde::{
    Deserializer,
    de::{self, DeserializeOwned, DeserializeSeed, EnumAccess, MapAccess, SeqAccess, Visitor},
    forward_to_deserialize_any,
};

/// Deepest nesting of arrays and objects that a signed body may have.
pub(crate) const MAX_DEPTH: usize = 32;

/// Why a text is not the structure it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The member at fault, such as `context.workItems[3]`; empty for the whole.
    pub(crate) field: String,
    /// What is wrong, without the text itself.
    pub(crate) reason: String,
}

/// Reads exactly one `T` that borrows from `bytes`, and nothing after it.
pub(crate) fn from_slice<'de, T: de::Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, Fault> {
    let mut inner = serde_json::Deserializer::from_slice(bytes);
    let place = RefCell::new(None);
    let value = T::deserialize(Strict {
        inner: &mut inner,
        path: &Path::Root,
        place: &place,
    })
    .and_then(|value| inner.end().map(|()| value));
    value.map_err(|error| {
        let mut field: String = place.into_inner().unwrap_or_default();
        let mut reason = error.to_string();
        for marker in ["missing field `", "unknown field `", "duplicate field `"] {
            if let Some(name) = reason
                .strip_prefix(marker)
                .and_then(|rest| rest.split('`').next())
                && field.rsplit('.').next() != Some(name)
            {
                if !field.is_empty() {
                    field.push('.');
                }
                field.push_str(name);
            }
        }
        // What a peer wrote is not echoed at length.
        truncate(&mut field, 128);
        truncate(&mut reason, 256);
        Fault { field, reason }
    })
}

/// As [`from_slice`], for what owns its parts.
pub(crate) fn from_str<T: DeserializeOwned>(text: &str) -> Result<T, Fault> {
    from_slice(text.as_bytes())
}

fn truncate(text: &mut String, max: usize) {
    if text.len() > max {
        let cut = (0..=max).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(cut.unwrap_or(0));
    }
}

/// Whether arrays and objects nest no deeper than `max`. For parts which are kept as they are, unread.
pub(crate) fn nests_within(bytes: &[u8], max: usize) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in bytes {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => {
                depth += 1;
                if depth > max {
                    return false;
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    true
}

enum Path<'p> {
    Root,
    Member(&'p Path<'p>, &'p str),
    Item(&'p Path<'p>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Member(Path::Root, name) => f.write_str(name),
            Self::Member(parent, name) => write!(f, "{parent}.{name}"),
            Self::Item(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// Where the first fault was seen; the innermost place comes first.
type Place = RefCell<Option<String>>;

struct Strict<'p, T> {
    inner: T,
    path: &'p Path<'p>,
    place: &'p Place,
}

fn noting<T, E>(result: Result<T, E>, path: &Path<'_>, place: &Place) -> Result<T, E> {
    if result.is_err() {
        place.borrow_mut().get_or_insert_with(|| path.to_string());
    }
    result
}

macro_rules! forward {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            let Self { inner, path, place } = self;
            noting(inner.$method(Strict { inner: visitor, path, place }), path, place)
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Strict<'_, D> {
    type Error = D::Error;

    forward! {
        deserialize_any deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_i128 deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
        deserialize_f32 deserialize_f64 deserialize_char deserialize_str deserialize_string
        deserialize_bytes deserialize_byte_buf deserialize_option deserialize_unit deserialize_seq
        deserialize_map deserialize_identifier deserialize_ignored_any
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        noting(
            self.inner.deserialize_unit_struct(name, visitor),
            self.path,
            self.place,
        )
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let Self { inner, path, place } = self;
        let visitor = Strict {
            inner: visitor,
            path,
            place,
        };
        noting(inner.deserialize_newtype_struct(name, visitor), path, place)
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let Self { inner, path, place } = self;
        let visitor = Strict {
            inner: visitor,
            path,
            place,
        };
        noting(inner.deserialize_tuple(len, visitor), path, place)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let Self { inner, path, place } = self;
        let visitor = Strict {
            inner: visitor,
            path,
            place,
        };
        noting(
            inner.deserialize_tuple_struct(name, len, visitor),
            path,
            place,
        )
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        // The one thing that makes this strict: a struct is an object and never an array.
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let Self { inner, path, place } = self;
        let visitor = Strict {
            inner: visitor,
            path,
            place,
        };
        noting(inner.deserialize_enum(name, variants, visitor), path, place)
    }
}

macro_rules! forward_visits {
    ($($method:ident: $type:ty,)*) => {$(
        fn $method<E: de::Error>(self, value: $type) -> Result<V::Value, E> {
            self.inner.$method(value)
        }
    )*};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Strict<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    forward_visits! {
        visit_bool: bool, visit_i64: i64, visit_i128: i128, visit_u64: u64, visit_u128: u128, visit_f64: f64,
        visit_str: &str, visit_borrowed_str: &'de str, visit_string: String,
        visit_bytes: &[u8], visit_borrowed_bytes: &'de [u8], visit_byte_buf: Vec<u8>,
    }

    fn visit_none<E: de::Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    fn visit_unit<E: de::Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        let Self {
            inner: visitor,
            path,
            place,
        } = self;
        visitor.visit_some(Strict { inner, path, place })
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        let Self {
            inner: visitor,
            path,
            place,
        } = self;
        visitor.visit_newtype_struct(Strict { inner, path, place })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.inner.visit_seq(Items {
            inner,
            path: self.path,
            place: self.place,
            index: 0,
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.inner.visit_map(Members {
            inner,
            path: self.path,
            place: self.place,
            name: None,
        })
    }

    fn visit_enum<A: EnumAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.inner.visit_enum(inner)
    }
}

struct Items<'p, A> {
    inner: A,
    path: &'p Path<'p>,
    place: &'p Place,
    index: usize,
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Items<'_, A> {
    type Error = A::Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, A::Error> {
        let path = Path::Item(self.path, self.index);
        self.index += 1;
        self.inner.next_element_seed(Seed {
            inner: seed,
            path: &path,
            place: self.place,
        })
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

struct Members<'p, A> {
    inner: A,
    path: &'p Path<'p>,
    place: &'p Place,
    name: Option<String>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Members<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        self.name = None;
        let key = self.inner.next_key_seed(Key {
            inner: seed,
            name: &mut self.name,
        });
        if key.is_err()
            && let Some(name) = &self.name
        {
            let path = Path::Member(self.path, name);
            return noting(key, &path, self.place);
        }
        key
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, A::Error> {
        let name = self.name.take().unwrap_or_default();
        let path = Path::Member(self.path, &name);
        self.inner.next_value_seed(Seed {
            inner: seed,
            path: &path,
            place: self.place,
        })
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

struct Seed<'p, T> {
    inner: T,
    path: &'p Path<'p>,
    place: &'p Place,
}

impl<'de, T: DeserializeSeed<'de>> DeserializeSeed<'de> for Seed<'_, T> {
    type Value = T::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<T::Value, D::Error> {
        let Self {
            inner: seed,
            path,
            place,
        } = self;
        noting(seed.deserialize(Strict { inner, path, place }), path, place)
    }
}

/// Lets a member's name through and remembers it.
struct Key<'n, T> {
    inner: T,
    name: &'n mut Option<String>,
}

impl<'de, T: DeserializeSeed<'de>> DeserializeSeed<'de> for Key<'_, T> {
    type Value = T::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<T::Value, D::Error> {
        self.inner.deserialize(Key {
            inner,
            name: self.name,
        })
    }
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Key<'_, D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_any(Key {
            inner: visitor,
            name: self.name,
        })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Key<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<V::Value, E> {
        *self.name = Some(name.to_owned());
        self.inner.visit_str(name)
    }

    fn visit_borrowed_str<E: de::Error>(self, name: &'de str) -> Result<V::Value, E> {
        *self.name = Some(name.to_owned());
        self.inner.visit_borrowed_str(name)
    }

    fn visit_string<E: de::Error>(self, name: String) -> Result<V::Value, E> {
        *self.name = Some(name.clone());
        self.inner.visit_string(name)
    }
}
