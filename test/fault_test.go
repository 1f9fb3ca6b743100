//go:build linux

package test

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"dhow/internal/testkit"
	"dhow/test/fixture"
)

// errorTimeout is within what an error may take to be told.
const errorTimeout = 30 * time.Second

// testErrors wants docker's exit codes and one clear line for what a user gets
// wrong, or a registry does.
func testErrors(m *machine) {
	reg := fixture.StartRegistry(m.t)
	busybox := m.busybox()
	tree := []fixture.Entry{fixture.Dir("bin", 0o755), fixture.File("bin/sh", 0o755, busybox), fixture.File("pad", 0o644, strings.Repeat("0123456789", 1000))}
	img, err := fixture.Image(runtime.GOARCH, nil, tree)
	if err != nil {
		m.t.Fatal(err)
	}
	ref, _ := reg.Push(m.t, "good:1", img)
	foreign, err := fixture.Image("s390x", nil, tree[:1])
	if err != nil {
		m.t.Fatal(err)
	}
	foreignRef := reg.PushIndex(m.t, "foreign:1", foreign)
	gone := fixture.StartRegistry(m.t)
	gone.Stop()

	expect := func(name string, code int, sentence string, args ...string) {
		m.t.Helper()
		start := time.Now()
		r := m.dhow(args...)
		if took := time.Since(start); took > errorTimeout {
			m.t.Errorf("%s: took %v", name, took)
		}
		// One line says it; around it docker only tells of its search, and of its help.
		var lines []string
		for line := range strings.Lines(r.err) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "Unable to find image") && !strings.HasPrefix(line, "Run '") && !strings.HasPrefix(line, "Usage:") {
				lines = append(lines, line)
			}
		}
		if r.code != code || len(lines) != 1 || !strings.Contains(lines[0], sentence) {
			m.t.Errorf("%s: want exit code %d and one line with %q, got\n%s", name, code, sentence, r)
		}
	}
	expect("missing image", 125, "not found", "run", "--rm", reg.Addr+"/no/such:image", "true")
	expect("bad flag", 125, "unknown flag: --bogus", "run", "--bogus", "dhow/hello")
	expect("bad reference", 125, "invalid reference format", "run", "UPPER//case", "true")
	expect("registry is down", 125, "connection refused", "run", "--rm", gone.Addr+"/x:1", "true")
	expect("published port", 125, "published ports (--publish, --publish-all) are not supported yet", "run", "--rm", "-p", "8080:80", "dhow/hello", "true")
	expect("folder of the host", 125, "folders of the host (--volume /tmp:/x) are not supported yet", "run", "--rm", "-v", "/tmp:/x", "dhow/hello", "true")
	expect("unknown network", 125, "network nosuch not found", "run", "--rm", "--network", "nosuch", "dhow/hello", "true")
	expect("no host of that name", 125, "no such host", "run", "--rm", "no-such-host.invalid/x:1", "true")
	expect("foreign platform", 1, "no matching manifest for linux/"+runtime.GOARCH, "pull", foreignRef)
	expect("foreign platform", 125, "no matching manifest for linux/"+runtime.GOARCH, "run", "--rm", foreignRef, "true")

	reg.Corrupt.Store(true)
	expect("digest does not match", 1, "verification failed", "pull", ref)
	expect("digest does not match", 125, "verification failed", "run", "--rm", ref, "true")
	if out := m.ok("images", "-q", ref); out != "" {
		m.t.Errorf("a corrupt image became visible: %s", out)
	}
	reg.Corrupt.Store(false)
	m.ok("pull", ref) // nothing of the corrupt download is left in the way
	m.ok("rmi", ref)
}

// testPowerCut kills QEMU while a container writes: what was acknowledged is
// there afterwards, and nobody has to do anything.
func testPowerCut(m *machine) {
	images := m.ok("images", "-a", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}")
	id := m.ok("run", "-d", "--name", "writer", "dhow/hello", "sh", "-c", "echo was $(cat /count); i=0; while :; do i=$((i+1)); echo line $i; echo $i > /count; sync; done")
	m.ok("create", "--name", "idle", "dhow/hello", "true")
	deadline := time.Now().Add(time.Minute)
	for !strings.Contains(m.ok("logs", "writer"), "line 3\n") {
		if time.Now().After(deadline) {
			m.t.Fatal("the container does not write")
		}
		time.Sleep(100 * time.Millisecond)
	}
	daemon := m.status().PID
	vm := qemuOf(m, daemon)
	before := m.ok("logs", "writer")
	if err := syscall.Kill(vm, syscall.SIGKILL); err != nil {
		m.t.Fatal(err)
	}

	out := m.ok("ps", "-a", "--no-trunc", "--format", "{{.ID}} {{.Names}} {{.State}} {{.Status}}")
	lines := strings.Split(out, "\n")
	if len(lines) != 2 || !strings.Contains(out, id+" writer exited Exited (255)") || !strings.Contains(out, " idle created Created") {
		m.t.Errorf("after the power cut:\n%s", out)
	}
	if s := m.status(); s.PID != daemon || s.State != "running" {
		m.t.Errorf("after the power cut dhowd %d is %d and the machine %s", daemon, s.PID, s.State)
	}
	if after := m.ok("images", "-a", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"); after != images {
		m.t.Errorf("images before:\n%s\nafter:\n%s", images, after)
	}
	// What the log had shown is followed by a sync of the number before it.
	synced, err := strconv.Atoi(before[strings.LastIndex(before, " ")+1:])
	if err != nil {
		m.t.Fatalf("the log ended with %q", before[max(0, len(before)-40):])
	}
	log := m.ok("logs", "writer")
	if !strings.HasPrefix(log, "was\nline 1\nline 2\n") {
		m.t.Errorf("the log starts %.40q", log)
	}
	m.ok("start", "writer") // the writable layer is usable, and says what it holds
	var was int
	for deadline := time.Now().Add(time.Minute); was == 0; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			m.t.Fatal("the container does not write again")
		}
		for line := range strings.Lines(m.ok("logs", "writer")) {
			if n, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(line, "was "))); err == nil && strings.HasPrefix(line, "was ") {
				was = n
			}
		}
	}
	if was < synced-1 {
		m.t.Errorf("%d was synced before the power cut, %d is there", synced-1, was)
	}
	m.ok("rm", "-f", "writer", "idle")
}

// testRestart wants data and containers to survive an orderly stop.
func testRestart(m *machine) {
	m.ok("run", "--name", "keeper", "dhow/hello", "sh", "-c", "echo kept > /note; echo logged")
	m.ok("machine", "stop")
	if s := m.status(); s.State != "stopped" {
		m.t.Errorf("stopped machine is %s", s.State)
	}
	m.ok("machine", "start")
	if out := m.ok("ps", "-a", "--format", "{{.Names}} {{.State}}"); out != "keeper exited" {
		m.t.Errorf("ps -a:\n%s", out)
	}
	if out := m.ok("logs", "keeper"); out != "logged" {
		m.t.Errorf("logs: %q", out)
	}
	m.ok("rm", "keeper")
}

// testKilledDaemon wants no orphan of a dhowd that is killed, and nothing in
// the next one's way.
func testKilledDaemon(m *machine) {
	daemon := m.status().PID
	vm := qemuOf(m, daemon)
	if err := syscall.Kill(daemon, syscall.SIGKILL); err != nil {
		m.t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); alive(vm); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			m.t.Fatalf("QEMU %d outlives dhowd", vm)
		}
	}
	m.ok("ps")
}

func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(b), ") Z ")
}

// qemuOf returns the QEMU that dhowd started.
func qemuOf(m *machine, daemon int) int {
	m.t.Helper()
	pid := testkit.QEMUOf(daemon)
	if pid == 0 {
		m.t.Fatalf("dhowd %d has no QEMU", daemon)
	}
	return pid
}
