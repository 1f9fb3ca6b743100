//go:build linux

package api

import (
	"bytes"
	"io"
	"log/slog"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/image"
)

func TestMuxKeepsFramesWholeUnderConcurrency(t *testing.T) {
	var b bytes.Buffer
	m := &mux{w: &b}
	out, errs := m.stream(stdcopy.Stdout), m.stream(stdcopy.Stderr)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				_, _ = io.WriteString(out, strings.Repeat("o", 3000))
			}
		})
		wg.Go(func() {
			for range 50 {
				_, _ = io.WriteString(errs, strings.Repeat("e", 70))
			}
		})
	}
	wg.Wait()
	var o, e bytes.Buffer
	if _, err := stdcopy.StdCopy(&o, &e, &b); err != nil || o.String() != strings.Repeat("o", 4*50*3000) || e.String() != strings.Repeat("e", 4*50*70) {
		t.Errorf("%d and %d bytes, %v", o.Len(), e.Len(), err)
	}
}

func TestMuxSplitsLongWrites(t *testing.T) {
	var b bytes.Buffer
	p := bytes.Repeat([]byte("x"), 2*maxFrame+5)
	n, err := (&mux{w: &b}).stream(stdcopy.Stdout).Write(p)
	if n != len(p) || err != nil || b.Len() != len(p)+3*frameHeader {
		t.Errorf("%d, %v, %d bytes out", n, err, b.Len())
	}
	if n, err := (&mux{w: &b}).stream(stdcopy.Stdout).Write(nil); n != 0 || err != nil {
		t.Errorf("empty write: %d, %v", n, err)
	}
}

// counter counts flushes.
type counter struct {
	*httptest.ResponseRecorder
	mu sync.Mutex
	n  int
}

func (c *counter) Flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
}

func (c *counter) flushes() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

func TestFlusherSendsTheFirstAtOnceAndGathersAFlood(t *testing.T) {
	c := &counter{ResponseRecorder: httptest.NewRecorder()}
	f := newFlusher(c)
	_, _ = io.WriteString(f, "a")
	if n := c.flushes(); n != 1 {
		t.Errorf("%d flushes after the first write", n)
	}
	begun := time.Now()
	for range 1000 {
		_, _ = io.WriteString(f, "b")
	}
	most := 2 + int(time.Since(begun)/flushEvery)
	if n := c.flushes(); n > most {
		t.Errorf("%d flushes of a flood, at most %d expected", n, most)
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) { // the tail goes by itself
		f.mu.Lock()
		dirty := f.dirty
		f.mu.Unlock()
		if !dirty {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the tail is not flushed")
		}
	}
	_, _ = io.WriteString(f, "c")
	_, _ = io.WriteString(f, "d")
	f.close()
	n := c.flushes()
	time.Sleep(3 * flushEvery)
	if c.flushes() != n || c.Body.String() != "a"+strings.Repeat("b", 1000)+"cd" {
		t.Errorf("touched after close, or %d bytes", c.Body.Len())
	}
}

func TestPullTitleAndJoinRef(t *testing.T) {
	for ref, want := range map[string][2]string{
		"alpine":                      {"latest", "library/alpine"},
		"alpine:3":                    {"3", "library/alpine"},
		"docker.io/library/alpine:3":  {"3", "library/alpine"},
		"docker.io/alpine":            {"latest", "library/alpine"},
		"me/img:v1":                   {"v1", "me/img"},
		"localhost:5000/a/b":          {"latest", "a/b"},
		"localhost/a:1":               {"1", "a"},
		"r.example:443/a@sha256:0011": {"sha256:0011", "a"},
		"a:1@sha256:0011":             {"sha256:0011", "library/a"},
	} {
		if m := pullTitle(ref); m.ID != want[0] || m.Status != "Pulling from "+want[1] {
			t.Errorf("%s: %s: %s", ref, m.ID, m.Status)
		}
	}
	for _, c := range [][3]string{
		{"a", "", "a"}, {"a", "1", "a:1"}, {"a:1", "2", "a:2"}, {"r:5/a", "2", "r:5/a:2"}, {"a@sha256:00", "sha256:11", "a@sha256:11"},
	} {
		if got := joinRef(c[0], c[1]); got != c[2] {
			t.Errorf("%s %s: %s, want %s", c[0], c[1], got, c[2])
		}
	}
}

func TestUntaggedImagesByVersion(t *testing.T) {
	old := shapeImages([]image.Summary{{ID: "x"}}, v1(42)).([]summary143)
	if old[0].RepoTags[0] != "<none>:<none>" || old[0].RepoDigests[0] != "<none>@<none>" {
		t.Errorf("%+v", old[0])
	}
	now := shapeImages([]image.Summary{{ID: "x"}}, v1(44)).([]image.Summary)
	if now[0].RepoTags == nil || len(now[0].RepoTags) > 0 || now[0].RepoDigests == nil {
		t.Errorf("%+v", now[0])
	}
}

func TestServerCutsOffSlowHeaders(t *testing.T) {
	srv := NewServer(New(Backends{}, Options{}), slog.New(slog.DiscardHandler))
	if srv.ReadHeaderTimeout <= 0 || srv.ReadHeaderTimeout > time.Minute || srv.ReadTimeout != 0 || srv.WriteTimeout != 0 {
		t.Errorf("header %v, read %v, write %v: headers must be bounded, streams must not", srv.ReadHeaderTimeout, srv.ReadTimeout, srv.WriteTimeout)
	}
}
