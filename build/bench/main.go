//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"dhow/host/client"
	"dhow/host/config"
	"dhow/host/usernet"
	"dhow/host/vm"
	"dhow/internal/testkit"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var o options
	flag.IntVar(&o.n, "n", 5, "rounds")
	flag.StringVar(&o.bin, "bin", "bin", "directory of dhow and dhowd")
	flag.StringVar(&o.image, "image", "build/out/image/"+runtime.GOARCH, "directory of the VM image")
	flag.StringVar(&o.peer, "peer", "", "another engine to time in the same run, e.g. tcp://127.0.0.1:2375")
	flag.IntVar(&o.peerPID, "peer-pid", 0, "process of the peer's virtual machine, for its CPU time")
	flag.StringVar(&o.peerStart, "peer-start", "", "shell command that boots the peer and returns when its API answers; it must be stopped")
	flag.StringVar(&o.peerStop, "peer-stop", "", "shell command that stops the peer")
	flag.StringVar(&o.peerPIDFile, "peer-pid-file", "", "file with the pid of the peer's virtual machine, read anew at each use")
	flag.StringVar(&o.markdown, "o", "", "file to write the table to, as Markdown")
	flag.Parse()
	if err := run(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	n                         int
	bin, image                string
	peer, peerStart, peerStop string
	peerPIDFile, markdown     string
	peerPID                   int
}

// bench is one run: a home of its own for dhow, and the rows.
type bench struct {
	options
	ctx    context.Context
	home   string
	layout config.Layout
	floor  *floor
	rows   []*row
	env    []string
}

const hello = "dhow/hello"

func run(ctx context.Context, o options, out io.Writer) (err error) {
	home, err := os.MkdirTemp("", "dhowb")
	if err != nil {
		return err
	}
	defer os.RemoveAll(home)
	b := &bench{options: o, ctx: ctx, home: home}
	for _, p := range []*string{&b.bin, &b.image} {
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
	}
	b.env = append(os.Environ(), "DHOW_HOME="+home, "DHOW_IMAGE="+b.image, "DOCKER_CONFIG="+filepath.Join(home, "docker"), "DOCKER_HOST=", "DOCKER_CONTEXT=")
	if b.layout, err = config.NewLayout(home, ""); err != nil {
		return err
	}
	defer func() { _, _ = b.dhow("machine", "stop", "--force") }()

	stopNet, err := b.makeFloor()
	if err != nil {
		return err
	}
	defer stopNet()
	// The first boot makes the data disk's file system: not what a user waits for.
	if _, err := b.dhow("machine", "start"); err != nil {
		return err
	}
	if err := b.prepareWarm(); err != nil {
		return err
	}
	for i := range o.n {
		fmt.Fprintf(os.Stderr, "round %d of %d\n", i+1, o.n)
		if err := b.round(); err != nil {
			return err
		}
	}
	return b.report(out)
}

// makeFloor gives the bare kernel the devices that dhow's machine has.
func (b *bench) makeFloor() (func(), error) {
	var manifest struct {
		Cmdline string `json:"cmdline"`
	}
	data, err := os.ReadFile(filepath.Join(b.image, "manifest.json"))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, &manifest); err != nil {
		return nil, err
	}
	s, err := config.Load(b.layout, config.ThisHost())
	if err != nil {
		return nil, err
	}
	disk := filepath.Join(b.home, "floor.img")
	f, err := os.Create(disk)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(s.DiskSize); err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	// A network socket that accepts and says nothing is all that the device needs.
	sock := filepath.Join(b.home, "floor.sock")
	l, err := net.Listen("unix", sock)
	if err != nil {
		return nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	b.floor, err = newFloor(b.home, vm.Config{
		Name: "floor", Kernel: filepath.Join(b.image, "kernel"), Root: filepath.Join(b.image, "root.erofs"), Cmdline: manifest.Cmdline,
		DataDisk: disk, CPUs: s.CPUs, Memory: s.Memory, MAC: usernet.GuestMAC, NetSocket: sock,
	})
	return func() { l.Close(); <-done }, err
}

func (b *bench) row(name string) *row {
	for _, r := range b.rows {
		if r.name == name {
			return r
		}
	}
	r := &row{name: name}
	b.rows = append(b.rows, r)
	return r
}

// timed runs f and adds its sample to the row; pid's CPU time is taken before
// and after.
func (b *bench) timed(name string, pid int, f func() error) error {
	cpu, start := processCPU(pid), time.Now()
	if err := f(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	b.row(name).add(sample{time.Since(start), processCPU(pid) - cpu})
	return nil
}

// round measures every row once.
func (b *bench) round() error {
	s, err := b.floor.run(b.ctx)
	if err != nil {
		return err
	}
	b.row(rowFloor).add(s)

	// Off means off: no dhowd either.
	if err := b.boot(rowBoot, "version", "--format", "{{.Server.Version}}"); err != nil {
		return err
	}
	if err := b.boot(rowBootRun, "run", "--rm", hello, "echo", "hello"); err != nil {
		return err
	}
	if err := b.warm(); err != nil {
		return err
	}
	if b.peer == "" {
		return nil
	}
	return b.peerRound()
}

// boot stops all, then times a command that boots all.
func (b *bench) boot(name string, args ...string) error {
	if _, err := b.dhow("machine", "stop"); err != nil {
		return err
	}
	start := time.Now()
	if _, err := b.dhow(args...); err != nil {
		return err
	}
	wall := time.Since(start)
	b.row(name).add(sample{wall, processCPU(b.qemu())})
	return nil
}

// qemu returns the pid of our machine's process, 0 if it does not run.
func (b *bench) qemu() int {
	s, err := client.New(b.layout.DaemonSocket()).Status(b.ctx)
	if err != nil {
		return 0
	}
	return testkit.QEMUOf(s.PID)
}

func (b *bench) dhow(args ...string) (string, error) {
	return b.command(nil, filepath.Join(b.bin, "dhow"), args...)
}

func (b *bench) command(stdin io.Reader, name string, args ...string) (string, error) {
	c := exec.CommandContext(b.ctx, name, args...)
	c.Env, c.Stdin = b.env, stdin
	var out, errOut bytes.Buffer
	c.Stdout, c.Stderr = &out, &errOut
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, strings.TrimSpace(errOut.String()))
	}
	return strings.TrimSpace(out.String()), nil
}

// docker returns an HTTP client of the engine's API on our socket.
func (b *bench) docker() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", b.layout.DockerSocket())
	}}}
}

func (b *bench) report(out io.Writer) error {
	base := b.row(rowFloor)
	head := []string{"what", "n", "wall, median", "least", "VM CPU, median", "× the bare kernel's boot"}
	peers := map[string]*row{}
	for _, r := range b.rows {
		if own, ok := strings.CutPrefix(r.name, peerPrefix); ok {
			peers[own] = r
		}
	}
	if len(peers) > 0 {
		head = append(head, "peer: wall", "peer: VM CPU", "wall ÷ peer's", "CPU ÷ peer's")
	}
	var table [][]string
	for _, r := range b.rows {
		if strings.HasPrefix(r.name, peerPrefix) || len(r.samples) == 0 {
			continue
		}
		line := []string{r.name, fmt.Sprint(len(r.samples)), show(r.wall()), show(r.least()), show(r.cpu()), ""}
		if boots[r.name] {
			line[5] = fmt.Sprintf("%.2f", float64(r.wall())/float64(base.wall()))
		}
		if p := peers[r.name]; p != nil {
			line = append(line, show(p.wall()), show(p.cpu()), ratio(r.wall(), p.wall()), ratio(r.cpu(), p.cpu()))
		}
		table = append(table, line)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, strings.Join(head, "\t"))
	for _, l := range table {
		fmt.Fprintln(w, strings.Join(l, "\t"))
	}
	if err := w.Flush(); err != nil || b.markdown == "" {
		return err
	}
	var md strings.Builder
	fmt.Fprintf(&md, "| %s |\n|%s\n", strings.Join(head, " | "), strings.Repeat("---|", len(head)))
	for _, l := range table {
		for len(l) < len(head) {
			l = append(l, "")
		}
		fmt.Fprintf(&md, "| %s |\n", strings.Join(l, " | "))
	}
	return os.WriteFile(b.markdown, []byte(md.String()), 0o644)
}

func show(d time.Duration) string {
	switch {
	case d == 0:
		return "–"
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.2f ms", float64(d)/1e6)
	case d < time.Second:
		return fmt.Sprintf("%.0f ms", float64(d)/1e6)
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

func ratio(a, b time.Duration) string {
	if a == 0 || b == 0 {
		return "–"
	}
	return fmt.Sprintf("%.3f", float64(a)/float64(b))
}
