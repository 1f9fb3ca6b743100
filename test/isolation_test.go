//go:build linux

package test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"dhow/test/fixture"
)

// testVsockIsClosed wants a container that may open AF_VSOCK sockets to get
// nowhere, in either direction: not to the agent's ports, not to dhowd's.
func testVsockIsClosed(m *machine) {
	probe := buildStatic(m.t, "./vsockprobe")
	img, err := fixture.Image(runtime.GOARCH, []string{"/probe"}, []fixture.Entry{fixture.File("probe", 0o755, probe)})
	if err != nil {
		m.t.Fatal(err)
	}
	reg := fixture.StartRegistry(m.t)
	ref, _ := reg.Push(m.t, "probe:1", img)
	m.ok("pull", ref)
	if r := m.dhow("run", "--rm", ref); r.code != 0 || r.out != "socket: denied\n" {
		m.t.Errorf("a default container may open AF_VSOCK sockets: %s", r)
	}
	// Without seccomp it may, and every door must be shut.
	r := m.dhow("run", "--rm", "--privileged", ref)
	if r.code != 0 || !strings.Contains(r.out, "socket: allowed\n") || !strings.Contains(r.out, "doors tried: ") {
		m.t.Fatalf("the probe did not run: %s", r)
	}
	if strings.Contains(r.out, "OPEN") {
		m.t.Errorf("a privileged container got an answer over vsock:\n%s", r.out)
	}
	m.ok("rmi", ref)
}

// testOutside wants containers to reach what the host reaches: names by the
// host's resolver, TCP by its network, the host's loopback only if that is
// switched on.
func testOutside(m *machine) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		m.t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			n, _ := io.Copy(io.Discard, r.Body)
			fmt.Fprintf(w, "got %d bytes\n", n)
			return
		}
		fmt.Fprintln(w, "hello from the host")
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	defer func() { s.Close(); <-done }()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		m.t.Fatal(err)
	}
	url := "http://host.docker.internal:" + port + "/"
	img, err := fixture.Image(runtime.GOARCH, nil, []fixture.Entry{fixture.File("fetch", 0o755, buildStatic(m.t, "./fetch"))})
	if err != nil {
		m.t.Fatal(err)
	}
	fetch, _ := fixture.StartRegistry(m.t).Push(m.t, "fetch:1", img)
	m.ok("pull", fetch)

	out := m.ok("run", "--rm", "dhow/hello", "sh", "-c", "ip -o -4 addr show eth0; ip route; cat /etc/resolv.conf")
	for _, want := range []string{"inet 172.17.0.", "default via 172.17.0.1 dev eth0", "nameserver "} {
		if !strings.Contains(out, want) {
			m.t.Errorf("the container's network lacks %q:\n%s", want, out)
		}
	}
	if r := m.dhow("run", "--rm", fetch, "/fetch", url); r.code != 1 || !strings.Contains(r.err, "host.docker.internal") {
		m.t.Errorf("the host's loopback is reachable though nobody switched it on: %s", r)
	}
	m.ok("machine", "config", "host_loopback=true")
	m.ok("machine", "restart")
	if out := m.ok("run", "--rm", fetch, "/fetch", url); out != "hello from the host" {
		m.t.Errorf("get: %q", out)
	}
	if out := m.ok("run", "--rm", fetch, "/fetch", url, strconv.Itoa(8<<20)); out != fmt.Sprintf("got %d bytes", 8<<20) {
		m.t.Errorf("post: %q", out)
	}
	// Containers on the default bridge reach each other by address.
	m.ok("run", "-d", "--name", "server", "dhow/hello", "sh", "-c", "echo hello from a neighbour > /index.html; httpd -f -p 80 -h /")
	addr := m.ok("inspect", "--format", "{{.NetworkSettings.Networks.bridge.IPAddress}}", "server")
	var r result
	for range 20 { // until its server listens
		if r = m.dhow("run", "--rm", fetch, "/fetch", "http://"+addr+"/"); r.code == 0 {
			break
		}
		time.Sleep(200 * time.Millisecond)
	}
	if r.out != "hello from a neighbour\n" {
		m.t.Errorf("neighbour: %s", r)
	}
	m.ok("rm", "-f", "server")
	m.ok("rmi", fetch)
	m.ok("machine", "config", "host_loopback=")
	m.ok("machine", "restart")
}

// buildStatic builds a program of this folder for a container.
func buildStatic(t *testing.T, pkg string) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "program")
	c := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, pkg)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", pkg, err, out)
	}
	data, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
