//go:build linux

package test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dhow/host/vm"
	"dhow/host/vm/qemu"
	"dhow/internal/testkit"
	"dhow/internal/version"
	"dhow/proto/control"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// TestVMArm64 boots the arm64 image, emulated, to its real agent, and runs a
// container in it: other system calls, other registers, the same result.
func TestVMArm64(t *testing.T) {
	image := testkit.VM(t).ImageARM64
	var manifest struct {
		Cmdline string `json:"cmdline"`
	}
	data, err := os.ReadFile(filepath.Join(image, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &manifest); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "dhowa")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	disk := filepath.Join(dir, "data.img")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 4<<30); err != nil {
		t.Fatal(err)
	}
	key := make([]byte, control.KeySize)
	_, _ = rand.Read(key)
	boot, err := json.Marshal(control.Boot{Protocol: control.Protocol, Version: version.Version, Key: key, Machine: "arm", Time: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	m := qemu.New(vm.Config{
		Name: "arm", Dir: filepath.Join(dir, "vm"), Kernel: filepath.Join(image, "kernel"), Initrd: filepath.Join(image, "initrd"),
		Root: filepath.Join(image, "root.erofs"), Cmdline: manifest.Cmdline, Boot: boot, DataDisk: disk, CPUs: 2, Memory: 1 << 30,
		Log: slog.New(slog.DiscardHandler),
	}, qemu.Options{Arch: "arm64"})
	t.Cleanup(func() { _ = m.Kill() })
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	ready, err := m.Listen(control.PortReady)
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	if err := m.Start(ctx); err != nil {
		t.Fatal(err)
	}
	defer context.AfterFunc(ctx, func() { _ = m.Kill() })()
	agent, err := ready.Accept()
	if err != nil {
		console, _ := os.ReadFile(filepath.Join(dir, "vm", "console.log"))
		t.Fatalf("the agent did not come: %v\n%s", err, console)
	}
	defer agent.Close()
	if err := control.AdmitGuest(agent, key, control.PortReady); err != nil {
		t.Fatal(err)
	}
	dial := func(ctx context.Context, port uint32) (net.Conn, error) {
		c, err := m.Dial(ctx, port)
		if err == nil {
			err = control.ProveHost(c, key, port)
		}
		return c, err
	}
	c, err := client.New(client.WithHost("tcp://dhow"), client.WithDialContext(func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dial(ctx, control.PortDocker)
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	made, err := c.ContainerCreate(ctx, client.ContainerCreateOptions{Config: &container.Config{Image: "dhow/hello", Cmd: []string{"sh", "-c", "uname -m; grep Seccomp: /proc/self/status; exit 7"}, Tty: true}})
	if err != nil {
		t.Fatal(err)
	}
	wait := c.ContainerWait(ctx, made.ID, client.ContainerWaitOptions{Condition: container.WaitConditionNextExit})
	if _, err := c.ContainerStart(ctx, made.ID, client.ContainerStartOptions{}); err != nil {
		t.Fatal(err)
	}
	select {
	case r := <-wait.Result:
		if r.StatusCode != 7 {
			t.Errorf("exit code %d", r.StatusCode)
		}
	case err := <-wait.Error:
		t.Fatal(err)
	}
	logs, err := c.ContainerLogs(ctx, made.ID, client.ContainerLogsOptions{ShowStdout: true})
	if err != nil {
		t.Fatal(err)
	}
	defer logs.Close()
	out, err := io.ReadAll(logs)
	if got := strings.ReplaceAll(string(out), "\r", ""); err != nil || got != "aarch64\nSeccomp:\t2\n" {
		t.Errorf("the container printed %q, %v", got, err)
	}
	conn, err := dial(ctx, control.PortControl)
	if err != nil {
		t.Fatal(err)
	}
	ctl := control.NewClient(conn)
	defer ctl.Close()
	if err := vm.Stop(ctx, m, func(ctx context.Context) error {
		return ctl.Call(ctx, control.VerbShutdown, control.Shutdown{Grace: time.Second}, nil)
	}); err != nil {
		t.Error(err)
	}
}
