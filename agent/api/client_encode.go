package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"

	"github.com/keboola/agnes-the-ai-analyst/internal/redact"
)

// encodeRequest returns a request's JSON with its secrets in clear. It is the
// only place that does so: everywhere else a Secret marshals as [redacted].
// Secrets are fields of the request struct itself; one that lies deeper is an
// error, so that it can never be sent as its placeholder.
func encodeRequest(req any) ([]byte, error) {
	wire, err := revealed(req)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(wire); err != nil {
		return nil, fmt.Errorf("encode %T: %w", req, err)
	}
	return bytes.TrimRight(b.Bytes(), "\n"), nil
}

// revealed copies a struct into one of the same shape and tags whose secrets
// are strings.
func revealed(req any) (any, error) {
	from := reflect.ValueOf(req)
	if from.Kind() != reflect.Struct {
		return nil, fmt.Errorf("encode %T: a request is a struct", req)
	}
	fields := reflect.VisibleFields(from.Type())
	for i, f := range fields {
		switch {
		case f.Anonymous || !f.IsExported():
			return nil, fmt.Errorf("encode %T: field %s is embedded or not exported", req, f.Name)
		case f.Type == reflect.TypeFor[redact.Secret]():
			fields[i].Type = reflect.TypeFor[string]()
		case f.Type == reflect.TypeFor[*redact.Secret]():
			fields[i].Type = reflect.TypeFor[*string]()
		case holdsSecret(f.Type, nil):
			return nil, fmt.Errorf("encode %T: field %s holds a secret too deep", req, f.Name)
		}
	}
	to := reflect.New(reflect.StructOf(fields)).Elem()
	for i, f := range fields {
		to.Field(i).Set(from.Field(i).Convert(f.Type))
	}
	return to.Interface(), nil
}

func holdsSecret(t reflect.Type, seen []reflect.Type) bool {
	for _, s := range seen {
		if s == t {
			return false
		}
	}
	seen = append(seen, t)
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Array:
		return holdsSecret(t.Elem(), seen)
	case reflect.Map:
		return holdsSecret(t.Key(), seen) || holdsSecret(t.Elem(), seen)
	case reflect.Struct:
		for _, f := range reflect.VisibleFields(t) {
			if holdsSecret(f.Type, seen) {
				return true
			}
		}
		return false
	default:
		return t == reflect.TypeFor[redact.Secret]()
	}
}

// secretsOf lists the secrets of a request, for scrub.
func secretsOf(req any) []redact.Secret {
	v := reflect.ValueOf(req)
	if !v.IsValid() || v.Kind() != reflect.Struct {
		return nil
	}
	var out []redact.Secret
	for i := range v.NumField() {
		switch s := v.Field(i).Interface().(type) {
		case redact.Secret:
			out = append(out, s)
		case *redact.Secret:
			if s != nil {
				out = append(out, *s)
			}
		}
	}
	return out
}
