//go:build linux

package api

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func FuzzFilters(f *testing.F) {
	for _, s := range []string{"", "{}", `{"a":{"b":true}}`, `{"a":{"b":false}}`, `{"a":["b","c"]}`, `{"a":null}`, `["a"]`, `{"a":{"b":1}}`, "null", "{"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parseFilters(s)
		if err != nil {
			if got != nil {
				t.Errorf("%q: filters beside an error", s)
			}
			return
		}
		for _, values := range got {
			for v, on := range values {
				if !on {
					t.Errorf("%q: value %q is off", s, v)
				}
			}
		}
		b, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseFilters(string(b))
		if err != nil || len(again) != len(got) || (len(got) > 0 && !reflect.DeepEqual(again, got)) {
			t.Errorf("%q: %v, then %v (%v)", s, got, again, err)
		}
	})
}

func FuzzVersionPath(f *testing.F) {
	for _, s := range []string{"/v1.41/info", "/v1.41.2/info", "/v/info", "/v1./x", "/v.1/x", "//", "/v9999999999999999999.1/x", "/v1.41", "/volumes", "/v1.24//"} {
		f.Add(s)
	}
	rt := newRouter(table)
	f.Fuzz(func(t *testing.T, path string) {
		v, rest := splitVersion(path)
		if v == "" && rest != path {
			t.Errorf("%q: rest %q", path, rest)
		}
		if v != "" && "/v"+v+rest != path {
			t.Errorf("%q: %q and %q", path, v, rest)
		}
		c := &call{}
		rest, err := c.takeVersion(path)
		if err != nil {
			return
		}
		if c.version < minVersion || c.version > maxVersion {
			t.Errorf("%q: version %s", path, c.version)
		}
		if rest != "" && rest[0] != '/' && !strings.HasPrefix(path, rest) {
			t.Errorf("%q: rest %q", path, rest)
		}
		for _, m := range []string{get, post, del} {
			if r, name := rt.find(m, rest); r != nil && strings.Contains(r.pattern, "{") && name == "" {
				t.Errorf("%q: %s with no name", path, r.pattern)
			}
		}
	})
}

func FuzzTime(f *testing.F) {
	for _, s := range []string{"", "0", "1.5", "-1", "1700000000.000000001", "1.", ".1", "+1", "1.99999999999999999999", "9223372036854775807.9"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parseTime(s)
		if err != nil || got.IsZero() {
			return
		}
		again, err := parseTime(fmt.Sprintf("%d.%09d", got.Unix(), got.Nanosecond()))
		if err != nil || !again.Equal(got) {
			t.Errorf("%q: %v, then %v (%v)", s, got, again, err)
		}
	})
}

func FuzzPlatform(f *testing.F) {
	for _, s := range []string{"linux", "linux/amd64", "arm64", "linux/arm/v7", "a/b/c/d", "/", "LINUX/X86_64"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parsePlatform(s)
		if err != nil {
			return
		}
		if p.OS == "" || (p.Variant != "" && p.Architecture == "") {
			t.Errorf("%q: %+v", s, p)
		}
	})
}
