//go:build linux

package api_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"golang.org/x/net/websocket"
)

// attach sends an attach by hand and returns the connection after the answer's
// header, and that header.
func (r *rig) attach(path string, upgrade bool) (*net.UnixConn, *bufio.Reader, string) {
	r.t.Helper()
	return r.hijack(path, "text/plain", "", upgrade)
}

// startExec is attach for an exec, which has a body.
func (r *rig) startExec(path, body string) (*net.UnixConn, *bufio.Reader, string) {
	r.t.Helper()
	return r.hijack(path, "application/json", body, true)
}

func (r *rig) hijack(path, contentType, body string, upgrade bool) (*net.UnixConn, *bufio.Reader, string) {
	r.t.Helper()
	c := r.dial()
	req := "POST " + path + " HTTP/1.1\r\nHost: docker\r\nContent-Type: " + contentType + "\r\nContent-Length: " + fmt.Sprint(len(body)) + "\r\n"
	if upgrade {
		req += "Connection: Upgrade\r\nUpgrade: tcp\r\n"
	}
	if _, err := io.WriteString(c, req+"\r\n"+body); err != nil {
		r.t.Fatal(err)
	}
	br := bufio.NewReader(c)
	var head strings.Builder
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			r.t.Fatalf("%v after %q", err, head.String())
		}
		head.WriteString(line)
		if line == "\r\n" {
			return c, br, head.String()
		}
	}
}

func TestAttachAnswersByVersionAndUpgrade(t *testing.T) {
	const (
		raw = "application/vnd.docker.raw-stream"
		mux = "application/vnd.docker.multiplexed-stream"
	)
	upgraded := func(contentType string) string {
		return "HTTP/1.1 101 UPGRADED\r\nContent-Type: " + contentType + "\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n" +
			"Api-Version: 1.52\r\nOstype: linux\r\nServer: Docker/9.8.7 (linux)\r\n\r\n"
	}
	r := newRig(t)
	r.boxOf("plain", &container.Config{Image: "hello-world", Cmd: []string{"echo"}})
	r.boxOf("tty", &container.Config{Image: "hello-world", Cmd: []string{"echo"}, Tty: true})
	for _, c := range []struct {
		path    string
		upgrade bool
		want    string
	}{
		{"/v1.52/containers/plain/attach", true, upgraded(mux)},
		{"/v1.42/containers/plain/attach", true, upgraded(mux)},
		{"/v1.41/containers/plain/attach", true, upgraded(raw)},
		{"/containers/tty/attach", true, upgraded(raw)},
		{"/containers/plain/attach", false, "HTTP/1.1 200 OK\r\nContent-Type: " + raw + "\r\n\r\n"},
	} {
		_, _, head := r.attach(c.path+"?logs=1&stdout=1", c.upgrade)
		if head != c.want {
			t.Errorf("%s (upgrade %v):\n got %q\nwant %q", c.path, c.upgrade, head, c.want)
		}
	}
	r.refused("POST", "/containers/nosuch/attach?stream=1&stdout=1", "", 404, "No such container: nosuch")
}

func TestAttachStreamsBothWaysAndHalfCloses(t *testing.T) {
	noLeak(t)
	r := newRig(t)
	id := r.box("cat", "cat")
	res, err := r.client().ContainerAttach(t.Context(), id, client.ContainerAttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Close()
	r.start(id)
	if _, err := io.WriteString(res.Conn, "one\n"); err != nil {
		t.Fatal(err)
	}
	frame := make([]byte, 8+4)
	if _, err := io.ReadFull(res.Reader, frame); err != nil || string(frame) != "\x01\x00\x00\x00\x00\x00\x00\x04one\n" {
		t.Fatalf("first frame %q, %v", frame, err)
	}
	if _, err := io.WriteString(res.Conn, "two\n"); err != nil {
		t.Fatal(err)
	}
	if err := res.CloseWrite(); err != nil { // ends cat's input, and nothing else
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &errs, res.Reader); err != nil || out.String() != "two\n" || errs.Len() > 0 {
		t.Errorf("out %q, err %q, %v", out.String(), errs.String(), err)
	}
	res.Close()
	r.stop()
}

func TestAttachKeepsStreamsApart(t *testing.T) {
	r := newRig(t)
	id := r.box("both", "both", "to out", "to err", "5")
	res, err := r.client().ContainerAttach(t.Context(), id, client.ContainerAttachOptions{Stream: true, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Close()
	if err := res.CloseWrite(); err != nil { // as docker's CLI does without -i
		t.Fatal(err)
	}
	r.start(id)
	var out, errs bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &errs, res.Reader); err != nil || out.String() != "to out\n" || errs.String() != "to err\n" {
		t.Errorf("out %q, err %q, %v", out.String(), errs.String(), err)
	}
}

func TestInputSentWithTheRequestIsNotLost(t *testing.T) {
	r := newRig(t)
	id := r.box("cat", "cat")
	r.start(id)
	c := r.dial()
	req := "POST /containers/cat/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
	if _, err := io.WriteString(c, req+"early\n"); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil || !strings.HasSuffix(string(b), "\x01\x00\x00\x00\x00\x00\x00\x06early\n") {
		t.Errorf("%q, %v", b, err)
	}
}

func TestOutputEndsCleanlyWhileInputIsStillComing(t *testing.T) {
	noLeak(t)
	r := newRig(t)
	id := r.box("echo", "echo", "done")
	c, br, _ := r.attach("/containers/echo/attach?stream=1&stdin=1&stdout=1", true)
	feeding := make(chan struct{})
	go func() { // more than the socket's buffers hold, and nobody in the container reads it
		defer close(feeding)
		chunk := make([]byte, 64<<10)
		for range 100 {
			if _, err := c.Write(chunk); err != nil {
				return
			}
		}
	}()
	r.start(id)
	b, err := io.ReadAll(br)
	if err != nil || string(b) != "\x01\x00\x00\x00\x00\x00\x00\x05done\n" {
		t.Errorf("%q, %v: the end of the output must be an EOF, not a reset", b, err)
	}
	_ = c.Close()
	<-feeding
	r.stop()
}

func TestClientThatVanishesIsNoticed(t *testing.T) {
	for _, c := range []struct {
		name      string
		query     string
		halfClose bool
	}{
		{"with input", "stream=1&stdin=1&stdout=1", false},
		{"with ended input", "stream=1&stdin=1&stdout=1", true},
		{"without input", "stream=1&stdout=1", false},
		{"without input, half-closed as docker's CLI does", "stream=1&stdout=1", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			noLeak(t)
			r := newRig(t)
			id := r.box("sleep", "sleep") // writes nothing, so no write can fail
			r.start(id)
			conn, _, _ := r.attach("/containers/sleep/attach?"+c.query, true)
			eventually(t, "attached", func() bool { return r.e.Attached("sleep") == 1 })
			if c.halfClose {
				if err := conn.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(50 * time.Millisecond)
				if r.e.Attached("sleep") != 1 {
					t.Fatal("a half-close ended the attach")
				}
			}
			_ = conn.Close()
			eventually(t, "detached", func() bool { return r.e.Attached("sleep") == 0 })
			if err := r.e.ContainerKill(context.Background(), "sleep", ""); err != nil {
				t.Fatal(err)
			}
			r.stop()
		})
	}
}

func TestServersEndReachesAClientThatNeverCloses(t *testing.T) {
	r := newRig(t)
	r.start(r.box("sleep", "sleep"))
	_, br, _ := r.attach("/containers/sleep/attach?stream=1&stdout=1", true)
	if err := r.e.ContainerKill(t.Context(), "sleep", ""); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if b, err := io.ReadAll(br); err != nil || len(b) > 0 {
		t.Errorf("%q, %v", b, err)
	}
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("the output's end took %v", took)
	}
}

func TestFloodArrivesWhole(t *testing.T) {
	r := newRig(t)
	const size = 3 << 20
	id := r.box("flood", "flood", fmt.Sprint(size))
	res, err := r.client().ContainerAttach(t.Context(), id, client.ContainerAttachOptions{Stream: true, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Close()
	r.start(id)
	if n, err := stdcopy.StdCopy(io.Discard, io.Discard, res.Reader); n != size || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
}

func TestPanicAfterTheHijackEndsTheConnection(t *testing.T) {
	noLeak(t)
	r := newRig(t)
	r.box("a", "echo")
	r.e.Panic = "ContainerAttach.streams"
	_, br, _ := r.attach("/containers/a/attach?stream=1&stdout=1", true)
	if b, err := io.ReadAll(br); err != nil || len(b) > 0 {
		t.Errorf("%q, %v", b, err)
	}
	r.get("/info")
}

func TestOutputWaitsForClientsThatLoseIt(t *testing.T) {
	r := newRig(t)
	r.start(r.box("a", "sleep"))
	for agent, want := range map[string]time.Duration{"docker-sdk-python/7.1.0": 20 * time.Millisecond, "Docker-Client/29.8.2 (linux)": 0} {
		id := r.exec("a", client.ExecCreateOptions{Cmd: []string{"echo", "hi"}, AttachStdout: true})
		c := r.dial()
		begun := time.Now()
		if _, err := io.WriteString(c, "POST /exec/"+id+"/start HTTP/1.1\r\nHost: d\r\nUser-Agent: "+agent+"\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"); err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(c)
		if took := time.Since(begun); err != nil || !strings.HasSuffix(string(b), "hi\n") || took < want {
			t.Errorf("%s: %q, %v after %v", agent, b, err, took)
		}
	}
}

func TestAttachByWebSocket(t *testing.T) {
	noLeak(t)
	r := newRig(t)
	id := r.box("cat", "cat")
	r.start(id)
	cfg, err := websocket.NewConfig("ws://docker/containers/cat/attach/ws?stream=1&stdin=1&stdout=1", "http://docker")
	if err != nil {
		t.Fatal(err)
	}
	ws, err := websocket.NewClient(cfg, r.dial())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ws.Write([]byte("hi\n")); err != nil {
		t.Fatal(err)
	}
	var got []byte
	if err := websocket.Message.Receive(ws, &got); err != nil || string(got) != "hi\n" {
		t.Errorf("%q, %v", got, err)
	}
	_ = ws.Close()
	eventually(t, "detached", func() bool { return r.e.Attached("cat") == 0 })
	if err := r.e.ContainerKill(context.Background(), "cat", ""); err != nil && !strings.Contains(err.Error(), "not running") {
		t.Fatal(err)
	}
	r.stop()
	if _, err := ws.Read(got); err == nil || errors.Is(err, io.ErrNoProgress) {
		t.Errorf("read after the end: %v", err)
	}
}
