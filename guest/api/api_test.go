//go:build linux

package api_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"dhow/guest/api"
	"dhow/guest/api/apitest"
	"dhow/internal/testkit"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// rig is the API of a fake engine, served on a Unix socket.
type rig struct {
	t    *testing.T
	e    *apitest.Engine
	sock string
	log  *bytes.Buffer // of the server; read it after stop
	stop func()
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, e: apitest.New(), sock: filepath.Join(testkit.ShortDir(t), "s"), log: &bytes.Buffer{}}
	log := slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	l, err := net.Listen("unix", r.sock)
	if err != nil {
		t.Fatal(err)
	}
	srv := api.NewServer(api.New(api.Backends{Containers: r.e, Execs: r.e, Images: r.e, Networks: r.e, System: r.e}, api.Options{Log: log, Version: "9.8.7"}), log)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		_ = srv.Close()
		<-done
	}
	t.Cleanup(r.stop)
	return r
}

// client is docker's own client, of the highest version.
func (r *rig) client() *client.Client {
	r.t.Helper()
	c, err := client.New(client.WithHost("unix://" + r.sock))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (r *rig) dial() *net.UnixConn {
	r.t.Helper()
	c, err := net.Dial("unix", r.sock)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.UnixConn)
}

// do sends one request as text and returns the answer and its body.
func (r *rig) do(method, path, body string, header ...string) (*http.Response, string) {
	r.t.Helper()
	c := r.dial()
	if body != "" && !strings.Contains(strings.Join(header, "\n"), "Content-Type") {
		header = append(header, "Content-Type: application/json")
	}
	if body != "" {
		header = append(header, fmt.Sprintf("Content-Length: %d", len(body)))
	}
	header = append([]string{method + " " + path + " HTTP/1.1", "Host: docker", "Connection: close"}, header...)
	if _, err := io.WriteString(c, strings.Join(header, "\r\n")+"\r\n\r\n"+body); err != nil {
		r.t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		r.t.Fatalf("%s %s: %v", method, path, err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatalf("%s %s: %v", method, path, err)
	}
	_ = resp.Body.Close()
	return resp, string(b)
}

// get decodes the JSON of a GET that must succeed.
func (r *rig) get(path string) any {
	r.t.Helper()
	resp, body := r.do("GET", path, "")
	if resp.StatusCode != 200 {
		r.t.Fatalf("GET %s: %s: %s", path, resp.Status, body)
	}
	return decode(r.t, body)
}

func decode(t *testing.T, s string) any {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(s), &v); err != nil {
		t.Fatalf("%v in %s", err, s)
	}
	return v
}

// want compares an answer's status and JSON body with the expected ones.
func (r *rig) want(method, path, body string, status int, answer string) {
	r.t.Helper()
	resp, got := r.do(method, path, body)
	if resp.StatusCode != status {
		r.t.Errorf("%s %s: status %d, want %d: %s", method, path, resp.StatusCode, status, got)
		return
	}
	if answer == "" {
		if got != "" {
			r.t.Errorf("%s %s: body %q, want none", method, path, got)
		}
		return
	}
	if !reflect.DeepEqual(decode(r.t, got), decode(r.t, answer)) {
		r.t.Errorf("%s %s:\n got %s\nwant %s", method, path, got, answer)
	}
}

// refused checks that a request gets an error with this sentence.
func (r *rig) refused(method, path, body string, status int, sentence string) {
	r.t.Helper()
	b, err := json.Marshal(map[string]string{"message": sentence})
	if err != nil {
		r.t.Fatal(err)
	}
	r.want(method, path, body, status, string(b))
}

// box makes a container and returns its ID.
func (r *rig) box(name string, cmd ...string) string {
	r.t.Helper()
	return r.boxOf(name, &container.Config{Image: "hello-world", Cmd: cmd, OpenStdin: true, StdinOnce: true})
}

func (r *rig) boxOf(name string, c *container.Config) string {
	r.t.Helper()
	res, err := r.client().ContainerCreate(r.t.Context(), client.ContainerCreateOptions{Name: name, Config: c})
	if err != nil {
		r.t.Fatal(err)
	}
	return res.ID
}

func (r *rig) start(id string) {
	r.t.Helper()
	if _, err := r.client().ContainerStart(r.t.Context(), id, client.ContainerStartOptions{}); err != nil {
		r.t.Fatal(err)
	}
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timed out: %s", what)
		}
	}
}

// noLeak checks, at the test's end, that the server's goroutines are gone.
func noLeak(t *testing.T) {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		eventually(t, "goroutines ended", func() bool {
			if n := runtime.NumGoroutine(); n <= before {
				return true
			}
			return false
		})
	})
}

func TestPanicIs500AndTheServerGoesOn(t *testing.T) {
	r := newRig(t)
	r.e.Panic = "Info"
	r.refused("GET", "/info", "", 500, "the engine failed while it handled the request; its log has the details")
	r.e.Panic = ""
	r.get("/info")
	r.stop()
	if !strings.Contains(r.log.String(), "told to panic in Info") {
		t.Error("the log says nothing of the panic")
	}
}

func TestBodiesAreCheckedAsDockerdDoes(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct {
		name, body, contentType string
		status                  int
		sentence                string
	}{
		{"not JSON's type", "x=y", "application/x-www-form-urlencoded", 400, "unsupported Content-Type header (application/x-www-form-urlencoded): must be 'application/json'"},
		{"malformed type", "{}", "a/b/c", 400, "malformed Content-Type header (a/b/c): mime: unexpected content after media subtype"},
		{"not JSON", "{", "application/json", 400, "invalid JSON: unexpected EOF"},
		{"null", "null", "application/json", 400, "config cannot be empty in order to create a container"},
		{"two documents", `{"Image":"a"} {}`, "application/json", 400, "unexpected content after JSON"},
		{"too long", `{"Image":"` + strings.Repeat("a", api.MaxBody) + `"}`, "application/json", 413, "the request's body is longer than 4194304 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			resp, body := r.do("POST", "/containers/create", c.body, "Content-Type: "+c.contentType)
			if got := decode(t, body).(map[string]any)["message"]; resp.StatusCode != c.status || got != c.sentence {
				t.Errorf("%d %q, want %d %q", resp.StatusCode, got, c.status, c.sentence)
			}
		})
	}
	r.refused("POST", "/containers/create", "", 400, "invalid JSON: got EOF while reading request body")
}

func TestRequestEndsWithItsClient(t *testing.T) {
	noLeak(t)
	r := newRig(t)
	id := r.box("a", "tick")
	r.start(id)
	c := r.dial()
	if _, err := io.WriteString(c, "GET /containers/a/logs?follow=1&stdout=1 HTTP/1.1\r\nHost: docker\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the log is followed", func() bool { return r.e.Attached("a") == 1 })
	_ = c.Close()
	eventually(t, "the follower is gone", func() bool { return r.e.Attached("a") == 0 })
	if err := r.e.ContainerKill(context.Background(), "a", ""); err != nil {
		t.Fatal(err)
	}
	r.stop()
}
