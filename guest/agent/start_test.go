//go:build linux

package agent_test

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"dhow/guest/store/storetest"
)

func TestKernelInit(t *testing.T) {
	m := newMachine(t)
	m.load()
	yes := true
	t.Run("it is PID 1 and the exit code is the program's", func(t *testing.T) {
		out, errs, code, err := m.run(sh("cat /proc/1/comm; echo $$; exit 5"), container.HostConfig{Init: &yes}, nil)
		if f := strings.Fields(out); err != nil || code != 5 || len(f) != 2 || f[0] != "docker-init" || f[1] == "1" {
			t.Errorf("%q %q %d %v", out, errs, code, err)
		}
	})
	t.Run("it reaps", func(t *testing.T) {
		// The inner shell dies before its child, which so becomes init's.
		out, errs, _, err := m.run(sh(`sh -c 'sleep 0.1 & echo $!' > /tmp/pid; sleep 0.5; if [ -d /proc/$(cat /tmp/pid) ]; then echo zombie; else echo reaped; fi`), container.HostConfig{Init: &yes}, nil)
		if out != "reaped\n" || err != nil {
			t.Errorf("%q %q %v", out, errs, err)
		}
	})
	for name, c := range map[string]struct {
		init bool
		code int
	}{"it forwards": {true, 143}, "without it, PID 1 is deaf": {false, 137}} {
		t.Run(name, func(t *testing.T) {
			id := m.create(container.Config{Cmd: []string{"sleep", "1000"}}, container.HostConfig{Init: &c.init})
			if _, err := m.ContainerStart(t.Context(), id, client.ContainerStartOptions{}); err != nil {
				t.Fatal(err)
			}
			// The program handles no signal: only as PID 1 it would be deaf to this one.
			wait, begun := 1, time.Now()
			if _, err := m.ContainerStop(t.Context(), id, client.ContainerStopOptions{Timeout: &wait}); err != nil {
				t.Fatal(err)
			}
			in, err := m.ContainerInspect(t.Context(), id, client.ContainerInspectOptions{})
			if err != nil || in.Container.State.ExitCode != c.code {
				t.Errorf("%+v %v after %v", in.Container.State, err, time.Since(begun))
			}
			if h := in.Container.HostConfig; h.Init == nil || *h.Init != c.init {
				t.Errorf("inspect shows %v", h.Init)
			}
		})
	}
	t.Run("a missing program", func(t *testing.T) {
		_, _, _, err := m.run(container.Config{Cmd: []string{"nosuch"}}, container.HostConfig{Init: &yes}, nil)
		if err == nil || !strings.Contains(err.Error(), `exec: "nosuch": executable file not found in $PATH`) {
			t.Errorf("%v", err)
		}
	})
}

func TestKernelForeignImage(t *testing.T) {
	m := newMachine(t)
	r := storetest.NewRegistry(t)
	// The head of a program for s390x: big-endian, machine 22.
	elf := "\x7fELF\x02\x02\x01" + strings.Repeat("\x00", 9) + "\x00\x02\x00\x16\x00\x00\x00\x01" + strings.Repeat("\x00", 64)
	name := r.Push(t, "foreign:v1", storetest.Image(t, "s390x", storetest.Gzip(storetest.Tar(
		storetest.File{Name: "bin/"}, storetest.File{Name: "bin/sh", Data: elf, Mode: 0o755},
		storetest.File{Name: "bin/script", Data: "#!/nosuch\n", Mode: 0o755},
	))))
	mine := ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	mismatch := fmt.Sprintf("image with reference %s was found but does not provide the specified platform (linux/%s)", name, runtime.GOARCH)

	out, err := m.pull(name, client.ImagePullOptions{})
	if err != nil || strings.Contains(out, "WARNING") {
		t.Errorf("pull without a platform: %v %s", err, out)
	}
	out, err = m.pull(name, client.ImagePullOptions{Platforms: []ocispec.Platform{mine}})
	if err != nil || !strings.Contains(out, `{"status":"WARNING: `+mismatch+`"}`) {
		t.Errorf("pull: %v %s", err, out)
	}
	create := func(platform *ocispec.Platform, h container.HostConfig, cmd ...string) (client.ContainerCreateResult, error) {
		h.NetworkMode = "none"
		return m.ContainerCreate(t.Context(), client.ContainerCreateOptions{Config: &container.Config{Image: name, Cmd: cmd}, HostConfig: &h, Platform: platform})
	}
	if _, err := create(&mine, container.HostConfig{}, "/bin/sh"); err == nil || !strings.Contains(err.Error(), mismatch) {
		t.Errorf("create for a platform: %v", err)
	}
	yes := true
	for _, c := range []struct {
		cmd, want string
		host      container.HostConfig
	}{
		{"/bin/sh", "exec /bin/sh: exec format error\n", container.HostConfig{}},
		{"/bin/sh", "exec /bin/sh: exec format error\n", container.HostConfig{Init: &yes}},
		{"/bin/script", "exec /bin/script: no such file or directory\n", container.HostConfig{}},
	} {
		made, err := create(nil, c.host, c.cmd)
		if err != nil {
			t.Fatal(err)
		}
		if w := made.Warnings; len(w) != 1 || !strings.HasPrefix(w[0], "The requested image's platform (linux/s390x) does not match the detected host platform (linux/"+runtime.GOARCH) {
			t.Errorf("warnings %q", w)
		}
		wait := m.ContainerWait(t.Context(), made.ID, client.ContainerWaitOptions{Condition: container.WaitConditionNextExit})
		if _, err := m.ContainerStart(t.Context(), made.ID, client.ContainerStartOptions{}); err != nil {
			t.Errorf("start: %v", err)
			continue
		}
		select {
		case got := <-wait.Result:
			if got.StatusCode != 255 {
				t.Errorf("exit code %d", got.StatusCode)
			}
		case err := <-wait.Error:
			t.Error(err)
		}
		if got := m.logs(made.ID); got != c.want {
			t.Errorf("logs %q, want %q", got, c.want)
		}
	}
}
