//go:build linux

package runtime_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"dhow/guest/runtime"
	"dhow/guest/runtime/seccomp"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// once runs a container from Create to Delete; wait is the part up to its end.
func (f *fixture) once(id string, s *specs.Spec) (wait time.Duration) {
	f.tb.Helper()
	ctx := f.tb.Context()
	start := time.Now()
	c, err := f.Create(ctx, runtime.CreateConfig{ID: id, Spec: s})
	if err != nil {
		f.tb.Fatal(err)
	}
	if err := c.Start(ctx); err != nil {
		f.tb.Fatal(err)
	}
	<-c.Wait()
	wait = time.Since(start)
	if err := c.Delete(ctx); err != nil {
		f.tb.Fatal(err)
	}
	return wait
}

// BenchmarkRun is one container from Create to Delete, with docker's default
// spec and a program that ends at once.
func BenchmarkRun(b *testing.B) {
	f := newFixture(b)
	s := f.spec("/bin/true")
	i := 0
	for b.Loop() {
		i++
		f.once(fmt.Sprintf("b%d", i), s)
	}
}

// BenchmarkExec is one program in a running container.
func BenchmarkExec(b *testing.B) {
	f := newFixture(b)
	s := f.spec("sleep", "1000")
	c, err := f.Create(b.Context(), runtime.CreateConfig{ID: "b", Spec: s})
	if err != nil {
		b.Fatal(err)
	}
	if err := c.Start(b.Context()); err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := c.Delete(b.Context()); err != nil {
			b.Fatal(err)
		}
	}()
	p := *s.Process
	p.Args = []string{"/bin/true"}
	for b.Loop() {
		p, err := c.Exec(b.Context(), runtime.ExecConfig{ID: "x", Process: &p})
		if err != nil {
			b.Fatal(err)
		}
		<-p.Wait()
	}
}

// BenchmarkCompare runs the same container with this package, with crun and
// runc where they are installed, and the bare floor of testdata/floor.c, turn
// by turn, since the machine's speed changes by the second. It reports
// medians in milliseconds. The runtimes' figures include what they do in their
// own processes, as that is what a caller waits for. They want a host with
// cgroup version 2 alone; where version 1 is there too, this shows it to them:
//
//	unshare -m sh -c 'mount -t cgroup2 cgroup2 /sys/fs/cgroup && go test -run - -bench Compare .'
func BenchmarkCompare(b *testing.B) {
	f := newFixture(b)
	var names []string
	runs := map[string]func(i int) time.Duration{}
	add := func(name string, run func(i int) time.Duration) {
		names = append(names, name)
		runs[name] = run
	}
	if floor := newFloor(b, f); floor != nil {
		add("floor", floor)
	}
	spec, bare := f.spec("/bin/true"), f.spec("/bin/true")
	bare.Linux.Seccomp, bare.Linux.Resources = nil, nil
	bare.Mounts, bare.Linux.MaskedPaths, bare.Linux.ReadonlyPaths = bare.Mounts[:2], nil, nil
	add("dhow", func(i int) time.Duration { return f.once(fmt.Sprintf("d%d", i), spec) })
	add("dhow-bare", func(i int) time.Duration { return f.once(fmt.Sprintf("e%d", i), bare) })
	for _, name := range []string{"crun", "runc"} {
		if run := newOCI(b, f, name, spec); run != nil {
			add(name, run)
		}
	}
	took := map[string][]time.Duration{}
	i := 0
	for b.Loop() {
		i++
		for _, n := range names {
			took[n] = append(took[n], runs[n](i))
		}
	}
	for _, n := range names {
		l := took[n]
		slices.Sort(l)
		b.ReportMetric(float64(l[len(l)/2])/1e6, n+"-p50-ms")
		b.ReportMetric(float64(l[0])/1e6, n+"-min-ms")
	}
}

func newFloor(b *testing.B, f *fixture) func(int) time.Duration {
	bin := filepath.Join(f.dir, "floor")
	if out, err := exec.Command("gcc", "-O2", "-static", "-w", "-o", bin, "testdata/floor.c").CombinedOutput(); err != nil {
		b.Logf("no floor: %v %s", err, out)
		return nil
	}
	if err := os.MkdirAll(filepath.Join(f.rootfs, "proc"), 0o755); err != nil {
		b.Fatal(err)
	}
	c := exec.Command(bin, f.rootfs)
	in, err := c.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := c.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = in.Close()
		_ = c.Wait()
	})
	lines := bufio.NewReader(out)
	return func(int) time.Duration {
		_, _ = in.Write([]byte("x\n"))
		line, err := lines.ReadString('\n')
		if err != nil {
			b.Fatal("the floor failed")
		}
		ns, _ := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
		return time.Duration(ns)
	}
}

// newOCI runs a bundle with an OCI runtime's command line.
func newOCI(b *testing.B, f *fixture, name string, spec *specs.Spec) func(int) time.Duration {
	bin, err := exec.LookPath(name)
	if err != nil {
		b.Logf("no %s: %v", name, err)
		return nil
	}
	s := *spec
	s.Version = "1.0.2"
	l := *spec.Linux
	s.Linux = &l
	l.Resources = nil // their cgroups are of this host's version
	l.Seccomp, err = seccomp.Default(spec.Process.Capabilities.Bounding)
	if err != nil {
		b.Fatal(err)
	}
	m := slices.Clone(spec.Mounts)
	s.Mounts = slices.DeleteFunc(m, func(m specs.Mount) bool { return m.Type == "cgroup" })
	bundle := filepath.Join(f.dir, "bundle-"+name)
	if err := os.Mkdir(bundle, 0o755); err != nil {
		b.Fatal(err)
	}
	data, err := json.Marshal(&s)
	if err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o644); err != nil {
		b.Fatal(err)
	}
	args := []string{"--root", filepath.Join(f.dir, "run-"+name)}
	args = append(args, "run", "-b", bundle)
	run := func(i int) time.Duration {
		c := exec.Command(bin, append(args[:len(args):len(args)], fmt.Sprintf("dhow-bench-%d", i))...)
		var out bytes.Buffer
		c.Stderr = &out
		start := time.Now()
		if err := c.Run(); err != nil {
			b.Fatalf("%s: %v\n%s", name, err, out.String())
		}
		return time.Since(start)
	}
	c := exec.Command(bin, append(args[:len(args):len(args)], "dhow-bench-try")...)
	if out, err := c.CombinedOutput(); err != nil {
		b.Logf("%s does not run here: %v\n%s", name, err, out)
		return nil
	}
	return run
}
