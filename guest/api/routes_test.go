//go:build linux

package api

import (
	"strings"
	"testing"
)

func TestFindRoute(t *testing.T) {
	rt := newRouter(table)
	for _, c := range []struct{ method, path, pattern, name string }{
		{"GET", "/containers/json", "/containers/json", ""},
		{"GET", "/containers/json/json", "/containers/{name}/json", "json"},
		{"GET", "/containers/a/attach/ws", "/containers/{name}/attach/ws", "a"},
		{"GET", "/containers/a/b/json", "", ""},
		{"GET", "/containers//json", "", ""},
		{"GET", "/images/json", "/images/json", ""},
		{"GET", "/images/localhost:5000/a/b:c/json", "/images/{name...}/json", "localhost:5000/a/b:c"},
		{"GET", "/images/a/json/json", "/images/{name...}/json", "a/json"},
		{"POST", "/images/a@sha256:00/tag", "/images/{name...}/tag", "a@sha256:00"},
		{"DELETE", "/images/a/b", "/images/{name...}", "a/b"},
		{"DELETE", "/containers/a", "/containers/{name}", "a"},
		{"DELETE", "/containers/", "", ""},
		{"PATCH", "/containers/a", "", ""},
		{"GET", "", "", ""},
		{"GET", "/", "", ""},
		{"GET", "/images", "", ""},
	} {
		got, name := rt.find(c.method, c.path)
		pattern := ""
		if got != nil {
			pattern = got.pattern
		}
		if pattern != c.pattern || name != c.name {
			t.Errorf("%s %s: %q %q, want %q %q", c.method, c.path, pattern, name, c.pattern, c.name)
		}
	}
}

func TestTableHasNoRowTwiceAndNoneHidden(t *testing.T) {
	rt := newRouter(table)
	for i := range table {
		path := table[i].pattern
		if before, rest, ok := strings.Cut(path, "{"); ok {
			_, after, _ := strings.Cut(rest, "}")
			path = before + "x9" + after
		}
		if got, _ := rt.find(table[i].method, path); got != &table[i] {
			t.Errorf("%s %s is served by %v", table[i].method, table[i].pattern, got)
		}
	}
}

func BenchmarkFindRoute(b *testing.B) {
	rt := newRouter(table)
	b.ReportAllocs()
	for b.Loop() {
		rt.find("POST", "/containers/0123456789abcdef/start")
	}
}
