//go:build linux

package spec

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"dhow/internal/errdefs"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// input is `docker run IMAGE sh`.
func input() Input {
	return Input{
		ID: "abc", Config: &container.Config{Hostname: "abc", Env: []string{"PATH=/bin", "A=1"}, Cmd: []string{"sh"}},
		HostConfig: &container.HostConfig{NetworkMode: "bridge", IpcMode: "private", CgroupnsMode: "private", Resources: container.Resources{}},
		DeviceAt: func(path string) ([]specs.LinuxDevice, error) {
			switch path {
			case "/dev/sda":
				return []specs.LinuxDevice{{Path: path, Type: "b", Major: 8, Minor: 0}}, nil
			case "/dev/snd":
				return []specs.LinuxDevice{{Path: path + "/a", Type: "c", Major: 116, Minor: 1}, {Path: path + "/b", Type: "c", Major: 116, Minor: 2}}, nil
			}
			return nil, os.ErrNotExist
		},
	}
}

func build(t *testing.T, change func(*Input)) *specs.Spec {
	t.Helper()
	in := input()
	if change != nil {
		change(&in)
	}
	s, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestGolden keeps whole specs as they were when they were last read against
// what docker 29 makes of the same request (cgroup path, hooks and AppArmor are
// not ours). A change shows up as a difference to be read.
func TestGolden(t *testing.T) {
	for name, change := range map[string]func(*Input){
		"default": nil,
		"limits": func(in *Input) {
			h := in.HostConfig
			h.Memory, h.NanoCPUs = 64<<20, 1_500_000_000
			n := int64(100)
			h.PidsLimit = &n
			h.Ulimits = []*units.Ulimit{{Name: "nofile", Soft: 1024, Hard: 2048}}
			h.ShmSize = 128 << 20
			h.ReadonlyRootfs = true
			h.Tmpfs = map[string]string{"/run": "size=1m,exec"}
			h.Sysctls = map[string]string{"net.core.somaxconn": "1024"}
			in.Config.User, in.Config.WorkingDir, in.Config.Tty = "bob:staff", "/src", true
			h.GroupAdd = []string{"video", "44"}
			h.ConsoleSize = [2]uint{24, 80}
			in.Mounts = []Mount{{Source: "/var/lib/x", Destination: "/data", ReadOnly: true}, {Source: "/etc/h", Destination: "/etc/hosts", NonRecursive: true}}
		},
		"privileged": func(in *Input) {
			in.HostConfig.Privileged = true
			in.HostDevices = func() ([]specs.LinuxDevice, error) {
				return []specs.LinuxDevice{{Path: "/dev/kvm", Type: "c", Major: 10, Minor: 232}}, nil
			}
		},
	} {
		s := build(t, change)
		s.Linux.Seccomp = nil // package seccomp's matter
		got, err := json.MarshalIndent(s, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join("testdata", name+".json")
		if os.Getenv("UPDATE_GOLDEN") == "1" {
			if err := os.WriteFile(file, append(got, '\n'), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.TrimSpace(string(want)) != string(got) {
			t.Errorf("%s: differs from %s (UPDATE_GOLDEN=1 writes it); got\n%s", name, file, got)
		}
	}
}

func TestCapabilities(t *testing.T) {
	def := DefaultCapabilities()
	without := func(l []string, names ...string) []string {
		return slices.DeleteFunc(slices.Clone(l), func(c string) bool { return slices.Contains(names, c) })
	}
	for _, c := range []struct {
		add, drop  []string
		privileged bool
		want       []string
	}{
		{nil, nil, false, def},
		{[]string{"net_admin"}, nil, false, append(slices.Clone(def), "CAP_NET_ADMIN")},
		{[]string{"CAP_CHOWN"}, nil, false, def},
		{nil, []string{"CHOWN", "cap_kill"}, false, without(def, "CAP_CHOWN", "CAP_KILL")},
		{nil, []string{"ALL"}, false, []string{}},
		{[]string{"SYS_TIME"}, []string{"all"}, false, []string{"CAP_SYS_TIME"}},
		{[]string{"ALL"}, nil, false, AllCapabilities()},
		{[]string{"ALL"}, []string{"SYS_ADMIN"}, false, without(AllCapabilities(), "CAP_SYS_ADMIN")},
		{nil, []string{"ALL"}, true, AllCapabilities()},
	} {
		got, err := capabilities(&container.HostConfig{CapAdd: c.add, CapDrop: c.drop, Privileged: c.privileged})
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("add %v drop %v: %v %v, want %v", c.add, c.drop, got, err, c.want)
		}
	}
	_, err := capabilities(&container.HostConfig{CapAdd: []string{"foo"}})
	if want := `invalid CapAdd: unknown capability: "CAP_FOO"`; errdefs.Sentence(err) != want || !errdefs.Is(err, errdefs.Invalid) {
		t.Errorf("%v, want %s", err, want)
	}
}

func types(s *specs.Spec) (l []string) {
	for _, n := range s.Linux.Namespaces {
		l = append(l, string(n.Type)+":"+n.Path)
	}
	return l
}

func TestNamespaceModes(t *testing.T) {
	all := []string{"mount:", "network:", "uts:", "pid:", "ipc:", "cgroup:"}
	with := func(old, replacement string) []string {
		l := slices.Clone(all)
		i := slices.Index(l, old)
		if replacement == "" {
			return slices.Delete(l, i, i+1)
		}
		l[i] = replacement
		return l
	}
	for name, c := range map[string]struct {
		change func(*Input)
		want   []string
	}{
		"default":           {func(*Input) {}, all},
		"none":              {func(in *Input) { in.HostConfig.NetworkMode = "none" }, all},
		"host network":      {func(in *Input) { in.HostConfig.NetworkMode = "host" }, with("network:", "")},
		"container network": {func(in *Input) { in.HostConfig.NetworkMode = "container:x"; in.NetPath = "/n" }, with("network:", "network:/n")},
		"host pid":          {func(in *Input) { in.HostConfig.PidMode = "host" }, with("pid:", "")},
		"container pid":     {func(in *Input) { in.HostConfig.PidMode = "container:x"; in.PIDPath = "/p" }, with("pid:", "pid:/p")},
		"host ipc":          {func(in *Input) { in.HostConfig.IpcMode = "host" }, with("ipc:", "")},
		"shareable ipc":     {func(in *Input) { in.HostConfig.IpcMode = "shareable" }, all},
		"container ipc":     {func(in *Input) { in.HostConfig.IpcMode = "container:x"; in.IPCPath = "/i" }, with("ipc:", "ipc:/i")},
		"host uts":          {func(in *Input) { in.HostConfig.UTSMode = "host" }, with("uts:", "")},
		"host cgroup":       {func(in *Input) { in.HostConfig.CgroupnsMode = "host" }, with("cgroup:", "")},
	} {
		s := build(t, c.change)
		if got := types(s); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
		private := !strings.Contains(name, "network") || name == "none"
		if _, ok := s.Linux.Sysctl["net.ipv4.ping_group_range"]; ok != private {
			t.Errorf("%s: network sysctls set: %t", name, ok)
		}
		if name == "host uts" && s.Hostname != "" {
			t.Error("the host's name would be changed")
		}
	}
}

func mountAt(s *specs.Spec, dest string) *specs.Mount {
	for i := range s.Mounts {
		if s.Mounts[i].Destination == dest {
			return &s.Mounts[i]
		}
	}
	return nil
}

func TestMounts(t *testing.T) {
	s := build(t, func(in *Input) {
		in.Mounts = []Mount{{Source: "/a", Destination: "/x/y/z"}, {Source: "/b", Destination: "/x"}, {Source: "/c", Destination: "/dev/shm", Propagation: "rslave"}}
		in.HostConfig.Mounts = []mount.Mount{{Type: mount.TypeTmpfs, Target: "/x/y", TmpfsOptions: &mount.TmpfsOptions{SizeBytes: 4096, Mode: 0o700}}}
	})
	var user []string
	for _, m := range s.Mounts[len(s.Mounts)-4:] {
		user = append(user, m.Destination)
	}
	if want := []string{"/x", "/dev/shm", "/x/y", "/x/y/z"}; !slices.Equal(user, want) {
		t.Errorf("order %v, want %v", user, want)
	}
	if m := mountAt(s, "/dev/shm"); m.Type != "bind" || !slices.Equal(m.Options, []string{"rbind", "rslave"}) {
		t.Errorf("the user's /dev/shm: %+v", m)
	}
	if s.Linux.RootfsPropagation != "rslave" {
		t.Errorf("root propagation %q", s.Linux.RootfsPropagation)
	}
	if m := mountAt(s, "/x/y"); !slices.Equal(m.Options, []string{"noexec", "nosuid", "nodev", "rprivate", "size=4096", "mode=700"}) {
		t.Errorf("tmpfs options %v", m.Options)
	}

	s = build(t, func(in *Input) { in.Mounts = []Mount{{Source: "/dev", Destination: "/dev"}} })
	for _, m := range s.Mounts {
		if strings.HasPrefix(m.Destination, "/dev/") {
			t.Errorf("%s is mounted below the user's /dev", m.Destination)
		}
	}
	if s = build(t, func(in *Input) { in.HostConfig.IpcMode = "none" }); mountAt(s, "/dev/shm") != nil {
		t.Error("/dev/shm in spite of --ipc none")
	}
	s = build(t, func(in *Input) { in.HostConfig.IpcMode = "shareable"; in.ShmPath = "/shm" })
	if m := mountAt(s, "/dev/shm"); m.Source != "/shm" || m.Type != "bind" {
		t.Errorf("shareable /dev/shm: %+v", m)
	}
	for _, m := range []Mount{{Source: "/a", Destination: "x"}, {Source: "/a", Destination: "/"}, {Source: "/a", Destination: "/x", Propagation: "foo"}} {
		in := input()
		in.Mounts = []Mount{m}
		if _, err := Build(in); !errdefs.Is(err, errdefs.Invalid) {
			t.Errorf("%+v: %v", m, err)
		}
	}
	in := input()
	in.Mounts = []Mount{{Source: "/a", Destination: "/x"}, {Source: "/b", Destination: "/x/"}}
	if _, err := Build(in); errdefs.Sentence(err) != "Duplicate mount point: /x" {
		t.Errorf("duplicate: %v", err)
	}
}

func TestTmpfsOptions(t *testing.T) {
	for data, want := range map[string]string{
		"":                        "noexec,nosuid,nodev,rprivate",
		"exec":                    "nosuid,nodev,rprivate,exec",
		"rw,size=1m,size=2m,suid": "noexec,nodev,rprivate,rw,size=2m,suid",
		"ro,mode=1777,uid=5":      "noexec,nosuid,nodev,rprivate,ro,mode=1777,uid=5",
	} {
		m, err := tmpfs("/t", strings.Split(data, ","))
		if err != nil || strings.Join(m.Options, ",") != want {
			t.Errorf("%q: %v %v, want %s", data, m.Options, err, want)
		}
	}
	for _, bad := range []string{"foo", "size", "lowerdir=/", "nofoo", "x=1"} {
		if _, err := tmpfs("/t", []string{bad}); !errdefs.Is(err, errdefs.Invalid) {
			t.Errorf("%q is taken: %v", bad, err)
		}
	}
}

func TestEnvironment(t *testing.T) {
	got := environment("h", true, []string{"A=1", "PATH=/x", "TERM", "A=2", "B"})
	if want := []string{"PATH=/x", "HOSTNAME=h", "A=2"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := environment("h", false, nil); !slices.Equal(got, []string{"PATH=" + DefaultPath, "HOSTNAME=h"}) {
		t.Errorf("%v", got)
	}
}

func TestSecurityOptions(t *testing.T) {
	s := build(t, func(in *Input) {
		in.HostConfig.SecurityOpt = []string{"no-new-privileges", "seccomp=unconfined", "label=disable", "apparmor=unconfined"}
	})
	if !s.Process.NoNewPrivileges || s.Linux.Seccomp != nil {
		t.Errorf("no_new_privs %t, seccomp %v", s.Process.NoNewPrivileges, s.Linux.Seccomp != nil)
	}
	if s = build(t, nil); s.Process.NoNewPrivileges || s.Linux.Seccomp == nil {
		t.Error("the default is without filter, or with no_new_privs")
	}
	const profile = `{"defaultAction":"SCMP_ACT_ALLOW"}`
	s = build(t, func(in *Input) { in.HostConfig.SecurityOpt = []string{"seccomp=" + profile, "no-new-privileges:false"} })
	if s.Linux.Seccomp == nil || s.Linux.Seccomp.DefaultAction != specs.ActAllow || s.Process.NoNewPrivileges {
		t.Error("the given profile is not used")
	}
	s = build(t, func(in *Input) {
		in.HostConfig.Privileged = true
		in.HostConfig.SecurityOpt = []string{"seccomp=" + profile}
	})
	if s.Linux.Seccomp == nil {
		t.Error("a privileged container does not get the profile that it asks for")
	}
	s = build(t, func(in *Input) { in.HostConfig.MaskedPaths, in.HostConfig.ReadonlyPaths = []string{}, []string{"/x"} })
	if len(s.Linux.MaskedPaths) != 0 || !slices.Equal(s.Linux.ReadonlyPaths, []string{"/x"}) {
		t.Error("systempaths=unconfined has no effect")
	}
	for opt, want := range map[string]string{"foo": `invalid --security-opt 1: "foo"`, "foo=1": `invalid --security-opt 2: "foo=1"`, "no-new-privileges=x": `invalid --security-opt 2: "no-new-privileges=x"`} {
		in := input()
		in.HostConfig.SecurityOpt = []string{opt}
		if _, err := Build(in); errdefs.Sentence(err) != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestDevices(t *testing.T) {
	s := build(t, func(in *Input) {
		in.HostConfig.Devices = []container.DeviceMapping{
			{PathOnHost: "/dev/sda", PathInContainer: "/dev/xvda", CgroupPermissions: "r"}, {PathOnHost: "/dev/snd"},
		}
		in.HostConfig.DeviceCgroupRules = []string{"c 1:* rw"}
		in.HostConfig.BlkioDeviceReadBps = []*blkiodev.ThrottleDevice{{Path: "/dev/sda", Rate: 5}}
		in.HostConfig.BlkioWeight = 300
	})
	var paths []string
	for _, d := range s.Linux.Devices {
		paths = append(paths, d.Path)
	}
	if want := []string{"/dev/xvda", "/dev/snd/a", "/dev/snd/b"}; !slices.Equal(paths, want) {
		t.Errorf("devices %v, want %v", paths, want)
	}
	rules := s.Linux.Resources.Devices[len(defaultDeviceRules()):]
	if len(rules) != 4 || rules[0].Access != "r" || *rules[0].Major != 8 || rules[1].Access != "rwm" || *rules[3].Minor != -1 {
		t.Errorf("rules %+v", rules)
	}
	if b := s.Linux.Resources.BlockIO; *b.Weight != 300 || b.ThrottleReadBpsDevice[0].Major != 8 || b.ThrottleReadBpsDevice[0].Rate != 5 {
		t.Errorf("block IO %+v", b)
	}
	for name, change := range map[string]func(*container.HostConfig){
		"missing device": func(h *container.HostConfig) { h.Devices = []container.DeviceMapping{{PathOnHost: "/dev/nope"}} },
		"bad rule":       func(h *container.HostConfig) { h.DeviceCgroupRules = []string{"x 1:2 rw"} },
	} {
		in := input()
		change(in.HostConfig)
		_, err := Build(in)
		if !errdefs.Is(err, errdefs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
		if name == "missing device" && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the cause is lost: %v", err)
		}
	}
}

func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Input)
		class  errdefs.Class
	}{
		"cgroup parent":       {func(in *Input) { in.HostConfig.CgroupParent = "/x" }, errdefs.Unimplemented},
		"GPU":                 {func(in *Input) { in.HostConfig.DeviceRequests = []container.DeviceRequest{{}} }, errdefs.Unimplemented},
		"little memory":       {func(in *Input) { in.HostConfig.Memory = 1 << 20 }, errdefs.Invalid},
		"swap without memory": {func(in *Input) { in.HostConfig.MemorySwap = 1 << 30 }, errdefs.Invalid},
		"CPUs and quota":      {func(in *Input) { in.HostConfig.NanoCPUs, in.HostConfig.CPUQuota = 1e9, 5000 }, errdefs.Invalid},
		"realtime":            {func(in *Input) { in.HostConfig.CPURealtimePeriod = 1 }, errdefs.Invalid},
		"pid mode":            {func(in *Input) { in.HostConfig.PidMode = "foo" }, errdefs.Invalid},
		"dead container":      {func(in *Input) { in.HostConfig.NetworkMode = "container:x" }, errdefs.Conflict},
		"relative workdir":    {func(in *Input) { in.Config.WorkingDir = "x" }, errdefs.Invalid},
		"no command":          {func(in *Input) { in.Config.Cmd = nil }, errdefs.Invalid},
		"oom score":           {func(in *Input) { in.HostConfig.OomScoreAdj = 2000 }, errdefs.Invalid},
	} {
		in := input()
		c.change(&in)
		if _, err := Build(in); !errdefs.Is(err, c.class) {
			t.Errorf("%s: %v, want class %s", name, err, c.class)
		}
	}
}

func TestProcessOfExec(t *testing.T) {
	in := input()
	in.Config.User, in.Config.WorkingDir = "bob", "/src"
	in.HostConfig.CapDrop = []string{"ALL"}
	p, err := Process(ExecInput{Config: in.Config, HostConfig: in.HostConfig, Cmd: []string{"id"}, Env: []string{"A=2", "B=3"}, Tty: true})
	if err != nil {
		t.Fatal(err)
	}
	if p.User.Username != "bob" || p.Cwd != "/src" || len(p.Capabilities.Bounding) != 0 || !p.Terminal {
		t.Errorf("%+v", p)
	}
	if want := []string{"PATH=/bin", "HOSTNAME=abc", "TERM=xterm", "A=2", "B=3"}; !slices.Equal(p.Env, want) {
		t.Errorf("env %v, want %v", p.Env, want)
	}
	p, err = Process(ExecInput{Config: in.Config, HostConfig: in.HostConfig, Cmd: []string{"id"}, User: "0:5", WorkingDir: "/", Privileged: true})
	if err != nil || p.User.Username != "0:5" || p.Cwd != "/" || !reflect.DeepEqual(p.Capabilities.Effective, AllCapabilities()) {
		t.Errorf("%+v %v", p, err)
	}
	if _, err := Process(ExecInput{Config: in.Config, HostConfig: in.HostConfig}); !errdefs.Is(err, errdefs.Invalid) {
		t.Errorf("an exec of nothing: %v", err)
	}
}

// TestBuildLeavesItsInputAlone: specs are built from records that are kept.
func TestBuildLeavesItsInputAlone(t *testing.T) {
	in := input()
	yes := true
	in.HostConfig.Init, in.HostConfig.GroupAdd = &yes, []string{"video"}
	in.HostConfig.Annotations = map[string]string{"k": "v", AnnotationInit: "true"}
	before := fmt.Sprintf("%+v %+v", *in.Config, *in.HostConfig)
	s, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	if after := fmt.Sprintf("%+v %+v", *in.Config, *in.HostConfig); after != before {
		t.Errorf("before %s\nafter  %s", before, after)
	}
	if s.Annotations[AnnotationInit] != "true" || s.Annotations[AnnotationGroups] != "video" || s.Annotations["k"] != "v" {
		t.Errorf("annotations %v", s.Annotations)
	}
	in.HostConfig.Init = nil
	if s, _ = Build(in); s.Annotations[AnnotationInit] != "" {
		t.Error("an annotation of the user's turns init on")
	}
}
