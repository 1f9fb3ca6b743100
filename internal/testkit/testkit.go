package testkit

import (
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// ShortDir returns a temporary directory whose path leaves room for the name
// of a unix socket (t.TempDir's is often too long). It is removed with the test.
func ShortDir(t testing.TB) string {
	t.Helper()
	d, err := os.MkdirTemp("", "dhow")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(d) })
	return d
}

// NoLeaks fails the test if goroutines that run this module's code are still
// there at its end, some seconds after everything registered later was cleaned
// up. Call it first.
func NoLeaks(t testing.TB) {
	t.Helper()
	before := ours()
	t.Cleanup(func() {
		deadline := time.Now().Add(5 * time.Second)
		for {
			left := map[string]string{}
			for id, stack := range ours() {
				if _, was := before[id]; !was {
					left[id] = stack
				}
			}
			if len(left) == 0 {
				return
			}
			if time.Now().After(deadline) {
				for _, stack := range left {
					t.Errorf("left behind: %s", stack)
				}
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
}

// ours returns the stacks of goroutines that run this module's code, by id.
func ours() map[string]string {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	out := map[string]string{}
	for _, g := range strings.Split(string(buf), "\n\n") {
		head, rest, _ := strings.Cut(g, "\n")
		id, _, _ := strings.Cut(strings.TrimPrefix(head, "goroutine "), " ")
		if strings.Contains(rest, "dhow/") && !strings.Contains(rest, "testing.tRunner(") && !strings.Contains(rest, "testing.(*B)") && !strings.Contains(rest, "testkit.ours") {
			out[id] = g
		}
	}
	return out
}

// Log returns a logger whose lines go to the test's log, until the test ends.
func Log(t testing.TB) *slog.Logger {
	w := &testWriter{t: t}
	t.Cleanup(w.stop)
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

type testWriter struct {
	mu sync.Mutex
	t  testing.TB
}

func (w *testWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.t != nil {
		w.t.Log(strings.TrimRight(string(p), "\n"))
	}
	return len(p), nil
}

func (w *testWriter) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.t = nil
}
