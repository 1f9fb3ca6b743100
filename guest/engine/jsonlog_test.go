//go:build linux

package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// jsonlogLine is dockerd's record; encoding/json writes the form that its
// readers expect.
type jsonlogLine struct {
	Log    string            `json:"log,omitempty"`
	Stream string            `json:"stream,omitempty"`
	Attrs  map[string]string `json:"attrs,omitempty"`
	Time   time.Time         `json:"time"`
}

func newTestLog(t *testing.T) *jsonLog {
	l := &jsonLog{path: filepath.Join(t.TempDir(), "x-json.log"), maxFile: 1}
	t.Cleanup(func() { _ = l.close() })
	return l
}

func TestRecordsAreDockersForm(t *testing.T) {
	l := newTestLog(t)
	l.attrs = []byte(`{"k":"v"}`)
	lines := []string{"plain\n", "tab\t\"quote\" \\ <b>&amp;</b>\n", "bad \xff utf8 \u2028 ä\n", "\x00\x1b[1m\r\n", "\n"}
	w := &lineWriter{log: l, stream: "stdout"}
	w.write([]byte(strings.Join(lines, "")))
	raw, err := os.ReadFile(l.path)
	if err != nil {
		t.Fatal(err)
	}
	got := strings.SplitAfter(strings.TrimSuffix(string(raw), "\n"), "\n")
	if len(got) != len(lines) {
		t.Fatalf("%d records of %d lines", len(got), len(lines))
	}
	for i, line := range got {
		line = strings.TrimSuffix(line, "\n")
		var r jsonlogLine
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		r.Log = lines[i]
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if string(again) != line {
			t.Errorf("record\n%s\nencoding/json has\n%s", line, again)
		}
	}
}

func records(t *testing.T, l *jsonLog, tail int) []string {
	t.Helper()
	r, err := l.reader(tail)
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	var out []string
	if err := r.run(t.Context(), nil, func(rec record) (bool, error) { out = append(out, rec.Stream+":"+rec.Log); return true, nil }); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestPartialLines(t *testing.T) {
	l := newTestLog(t)
	w := &lineWriter{log: l, stream: "stderr"}
	w.write([]byte("be"))
	w.write([]byte("gin\nlong "))
	w.write(bytes.Repeat([]byte("x"), maxRecord))
	w.write([]byte("\nno newline"))
	if got := records(t, l, -1); len(got) != 3 {
		t.Fatalf("%d records before the end", len(got))
	}
	w.end()
	got := records(t, l, -1)
	want := []string{"stderr:begin\n", "stderr:long " + strings.Repeat("x", maxRecord-5), "stderr:xxxxx\n", "stderr:no newline"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%q", got)
	}
}

func TestALineOfExactlyOneRecordHasNoEmptyRest(t *testing.T) {
	l := newTestLog(t)
	w := &lineWriter{log: l, stream: "stdout"}
	w.write(append(bytes.Repeat([]byte("x"), maxRecord), '\n'))
	if got := records(t, l, -1); len(got) != 1 || len(got[0]) != len("stdout:")+maxRecord+1 {
		t.Errorf("%d records", len(got))
	}
}

func TestTail(t *testing.T) {
	l := newTestLog(t)
	l.maxSize, l.maxFile = 2000, 4
	w := &lineWriter{log: l, stream: "stdout"}
	for i := range 40 {
		w.write(fmt.Appendf(nil, "line %d %s\n", i, strings.Repeat("y", 30)))
	}
	all := records(t, l, -1)
	if len(all) < 30 || !strings.HasPrefix(all[len(all)-1], "stdout:line 39 ") {
		t.Fatalf("%d records, last %q", len(all), all[len(all)-1])
	}
	for _, n := range []int{0, 1, 5, 17, len(all), 1000} {
		want := all[max(0, len(all)-n):]
		if got := records(t, l, n); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("tail %d: %d records, want %d", n, len(got), len(want))
		}
	}
}

func TestRotationKeepsTheNumberOfFiles(t *testing.T) {
	for _, files := range []int{1, 3} {
		l := newTestLog(t)
		l.maxSize, l.maxFile = 500, files
		w := &lineWriter{log: l, stream: "stdout"}
		for i := range 100 {
			w.write(fmt.Appendf(nil, "line %d\n", i))
		}
		list, err := filepath.Glob(l.path + "*")
		if err != nil || len(list) != files {
			t.Errorf("%d files: %v, %v", files, list, err)
		}
		for _, f := range list {
			if st, err := os.Stat(f); err != nil || st.Size() > 700 {
				t.Errorf("%s: %v, %v", f, st, err)
			}
		}
		got := records(t, l, -1)
		if got[len(got)-1] != "stdout:line 99\n" {
			t.Errorf("last record %q", got[len(got)-1])
		}
	}
}

func TestACrashCostsOneRecordOnly(t *testing.T) {
	l := newTestLog(t)
	w := &lineWriter{log: l, stream: "stdout"}
	w.write([]byte("one\n"))
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(l.path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = f.WriteString(`{"log":"cut of`)
	_ = f.Close()
	w.write([]byte("two\n"))
	if got := records(t, l, -1); fmt.Sprint(got) != fmt.Sprint([]string{"stdout:one\n", "stdout:two\n"}) {
		t.Errorf("%q", got)
	}
}

// Readers follow while a writer writes and rotates: each sees every line once
// and in order, and ends with the life.
func TestFollow(t *testing.T) {
	l := newTestLog(t)
	l.maxSize, l.maxFile = 20_000, 1000
	const lines = 2000
	end := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		r, err := l.reader(-1)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer r.close()
			next := 0
			err := r.run(context.Background(), end, func(rec record) (bool, error) {
				if want := fmt.Sprintf("line %d\n", next); rec.Log != want {
					return false, fmt.Errorf("got %q, want %q", rec.Log, want)
				}
				next++
				return true, nil
			})
			if err != nil || next != lines {
				t.Errorf("%d lines: %v", next, err)
			}
		})
	}
	w := &lineWriter{log: l, stream: "stdout"}
	for i := range lines {
		w.write(fmt.Appendf(nil, "line %d\n", i))
	}
	if err := l.close(); err != nil {
		t.Error(err)
	}
	close(end)
	wg.Wait()
}

func TestFollowEndsWithItsContext(t *testing.T) {
	l := newTestLog(t)
	r, err := l.reader(-1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if err := r.run(ctx, make(chan struct{}), func(record) (bool, error) { return true, nil }); err != context.Canceled {
		t.Error(err)
	}
}
