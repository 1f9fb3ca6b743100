//go:build linux

package agent

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	proto "dhow/proto/control"
)

func TestWithoutADataDiskEveryRequestIsToldWhy(t *testing.T) {
	dir := t.TempDir()
	o := Options{
		Root: filepath.Join(dir, "root"), Run: filepath.Join(dir, "run"), Socket: filepath.Join(dir, "s"),
		DataError: "it holds an xfs file system, which is not dhow's", Version: "1.2.3", Log: slog.New(slog.DiscardHandler),
	}
	ready := make(chan struct{})
	o.Ready = func() { close(ready) }
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, o) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	select {
	case <-ready:
	case err := <-ended:
		ended <- err
		t.Fatal("the agent ended")
	}
	c := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", o.Socket)
	}}}
	defer c.CloseIdleConnections()
	do := func(method, path, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, method, "http://d"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := c.Do(req)
		if err != nil {
			t.Fatalf("%s %s: %v", method, path, err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	if code, text := do("GET", "/_ping", ""); code != 200 || text != "OK" {
		t.Errorf("ping: %d %s", code, text)
	}
	if code, text := do("GET", "/v1.44/version", ""); code != 200 || !strings.Contains(text, `"Version":"1.2.3"`) || !strings.Contains(text, `"KernelVersion":"`) {
		t.Errorf("version: %d %s", code, text)
	}
	for _, r := range [][3]string{
		{"GET", "/v1.44/info"}, {"GET", "/containers/json"}, {"POST", "/containers/create", `{"Image":"x"}`}, {"GET", "/images/json"},
		{"POST", "/images/create?fromImage=x&tag=y"}, {"POST", "/images/load", "x"}, {"POST", "/auth", "{}"}, {"GET", "/networks"}, {"GET", "/volumes"},
		{"GET", "/events"}, {"GET", "/system/df"}, {"POST", "/exec/x/start", "{}"}, {"POST", "/build"},
	} {
		code, text := do(r[0], r[1], r[2])
		var answer struct{ Message string }
		if err := json.Unmarshal([]byte(text), &answer); err != nil || code != 503 || answer.Message != "the machine has no usable data disk: "+o.DataError {
			t.Errorf("%s %s: %d %s", r[0], r[1], code, text)
		}
	}
	for _, d := range []string{o.Root, o.Run} {
		if _, err := os.Stat(d); !os.IsNotExist(err) {
			t.Errorf("%s was made: %v", d, err)
		}
	}
}

func TestWithoutADataDiskTheHostIsServed(t *testing.T) {
	a := &agent{Options: Options{Root: filepath.Join(t.TempDir(), "root"), DataError: "it is missing", Version: "1.2.3", Log: slog.New(slog.DiscardHandler)}}
	host, guest := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- a.controlServer().Serve(t.Context(), guest) }()
	c := proto.NewClient(host)
	var w proto.Welcome
	if err := c.Call(t.Context(), proto.VerbHello, proto.Hello{Protocol: proto.Protocol, Version: "1.2.3"}, &w); err != nil || w.Version != "1.2.3" {
		t.Errorf("hello: %+v, %v", w, err)
	}
	var s proto.Stats
	if err := c.Call(t.Context(), proto.VerbStats, nil, &s); err != nil || s.MemoryTotal == 0 || s.DiskTotal != 0 {
		t.Errorf("stats: %+v, %v", s, err)
	}
	if err := a.controlServer().Stop(t.Context(), time.Second); err != nil {
		t.Errorf("stop: %v", err)
	}
	_ = c.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
