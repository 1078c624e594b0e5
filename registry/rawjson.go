package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
)

// A rawObject is a JSON object whose values stay the bytes they were, in their
// order: what an edit does not concern is not touched by it, not even its spaces.
type rawObject struct {
	keys   []string
	values map[string]json.RawMessage
}

var errNotObject = errors.New("not a JSON object")

// parseRaw parses one JSON object. Of two values of one key the last counts, as
// in encoding/json.
func parseRaw(b []byte) (*rawObject, error) {
	if !json.Valid(b) {
		return nil, errNotObject
	}
	o := &rawObject{values: map[string]json.RawMessage{}}
	dec := json.NewDecoder(bytes.NewReader(b))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, errNotObject
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, err
		}
		var v json.RawMessage
		if err := dec.Decode(&v); err != nil {
			return nil, err
		}
		o.setRaw(key.(string), v) // in an object, every other token is a string
	}
	return o, nil
}

func (o *rawObject) setRaw(key string, v json.RawMessage) {
	if _, ok := o.values[key]; !ok {
		o.keys = append(o.keys, key)
	}
	o.values[key] = v
}

// set encodes v and sets it.
func (o *rawObject) set(key string, v any) error {
	b, err := marshal(v)
	if err == nil {
		o.setRaw(key, b)
	}
	return err
}

func (o *rawObject) remove(key string) {
	delete(o.values, key)
}

// get decodes a value into v. A key that is not there, or null, leaves v alone.
func (o *rawObject) get(key string, v any) error {
	raw, ok := o.values[key]
	if !ok {
		return nil
	}
	return json.Unmarshal(raw, v)
}

// object returns the object under key, an empty one if there is none.
func (o *rawObject) object(key string) (*rawObject, error) {
	raw, ok := o.values[key]
	if !ok || string(raw) == "null" {
		return &rawObject{values: map[string]json.RawMessage{}}, nil
	}
	return parseRaw(raw)
}

// list returns the elements of the array under key, each as it stands.
func (o *rawObject) list(key string) ([]json.RawMessage, error) {
	var list []json.RawMessage
	err := o.get(key, &list)
	return list, err
}

// bytes returns the object with every value as it was parsed or set.
func (o *rawObject) bytes() json.RawMessage {
	var b bytes.Buffer
	b.WriteByte('{')
	for _, k := range o.keys {
		v, ok := o.values[k]
		if !ok {
			continue
		}
		if b.Len() > 1 {
			b.WriteByte(',')
		}
		writeKey(&b, k)
		b.WriteByte(':')
		b.Write(v)
	}
	b.WriteByte('}')
	return b.Bytes()
}

func writeKey(w io.Writer, k string) {
	b, _ := marshal(k) // a string cannot fail
	_, _ = w.Write(b)
}

// rawList joins elements to an array without touching them.
func rawList(list []json.RawMessage) json.RawMessage {
	var b bytes.Buffer
	b.WriteByte('[')
	for i, v := range list {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(v)
	}
	b.WriteByte(']')
	return b.Bytes()
}
