package config_test

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"dhow/host/config"
	"dhow/internal/errdefs"
)

const gib = 1 << 30

func layout(t *testing.T) config.Layout {
	t.Helper()
	d, err := os.MkdirTemp("", "dc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(d) })
	l, err := config.NewLayout(d, "")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLayoutRefusesLongHome(t *testing.T) {
	_, err := config.NewLayout("/"+strings.Repeat("x", 90), "")
	if !errdefs.Is(err, errdefs.Invalid) || !strings.Contains(err.Error(), "DHOW_HOME") {
		t.Fatalf("error %v, want Invalid that names DHOW_HOME", err)
	}
	for _, bad := range []string{"a/b", "..", "A", "-x", strings.Repeat("a", 40)} {
		if _, err := config.NewLayout("/h", bad); !errdefs.Is(err, errdefs.Invalid) {
			t.Errorf("machine %q: error %v, want Invalid", bad, err)
		}
	}
}

func TestLayoutKeepsMachinesApart(t *testing.T) {
	a, _ := config.NewLayout("/h", "")
	b, _ := config.NewLayout("/h", "b")
	for _, f := range []func(config.Layout) string{config.Layout.DaemonSocket, config.Layout.DockerSocket, config.Layout.LockFile,
		config.Layout.LogFile, config.Layout.DataDisk, config.Layout.ConfigFile} {
		if f(a) == f(b) {
			t.Errorf("both machines use %s", f(a))
		}
	}
}

func TestDefaultsAreValidOnSmallAndLargeHosts(t *testing.T) {
	for _, h := range []config.Host{{CPUs: 1, Memory: 1 * gib}, {CPUs: 2, Memory: 3 * gib}, {CPUs: 128, Memory: 1024 * gib}, {CPUs: 8}, config.ThisHost()} {
		s := config.Settings{}.WithDefaults(h)
		if err := s.Validate(h); err != nil {
			t.Errorf("host %+v: %v", h, err)
		}
		if s.Memory > 4*gib || s.CPUs > 4 {
			t.Errorf("host %+v: %d CPUs, %d bytes", h, s.CPUs, s.Memory)
		}
	}
	if config.ThisHost().Memory <= 0 {
		t.Error("the host's memory is unknown")
	}
}

func TestSaveLoad(t *testing.T) {
	l, h := layout(t), config.Host{CPUs: 8, Memory: 16 * gib}
	s, err := config.LoadFile(l)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{"cpus": "2", "memory": "1g", "disk_size": "10 GiB", "dns": "1.1.1.1, 9.9.9.9", "idle_minutes": "5", "host_loopback": "true"} {
		if err := s.Set(k, v); err != nil {
			t.Fatal(err)
		}
	}
	if err := config.Save(l, s, h); err != nil {
		t.Fatal(err)
	}
	got, err := config.Load(l, h)
	if err != nil {
		t.Fatal(err)
	}
	want := config.Settings{CPUs: 2, Memory: gib, DiskSize: 10 * gib, DNS: []string{"1.1.1.1", "9.9.9.9"}, IdleMinutes: 5, HostLoopback: true}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v\nwant %+v", got, want)
	}
	for _, k := range config.Keys() {
		v, err := got.Get(k)
		if err != nil {
			t.Fatal(err)
		}
		again := got
		if err := again.Set(k, v); err != nil || !reflect.DeepEqual(again, got) {
			t.Errorf("Set(%s, Get) = %v, changed to %+v", k, err, again)
		}
	}
}

func TestErrorsNameTheSetting(t *testing.T) {
	h := config.Host{CPUs: 2, Memory: 4 * gib}
	for key, value := range map[string]string{"cpus": "3", "memory": "8g", "disk_size": "1m", "idle_minutes": "-1", "driver": "vmware"} {
		l := layout(t)
		var s config.Settings
		if err := s.Set(key, value); err != nil {
			t.Fatal(err)
		}
		err := config.Save(l, s, h)
		if !errdefs.Is(err, errdefs.Invalid) || !strings.Contains(err.Error(), key) {
			t.Errorf("%s=%s: %v", key, value, err)
		}
		if _, err := os.Stat(l.ConfigFile()); err == nil {
			t.Errorf("%s=%s was written", key, value)
		}
	}
	var s config.Settings
	for key, value := range map[string]string{"cpus": "x", "memory": "much", "dns": "example.com", "debug": "maybe", "nope": "1"} {
		if err := s.Set(key, value); !errdefs.Is(err, errdefs.Invalid) {
			t.Errorf("Set(%s, %s) = %v", key, value, err)
		}
	}
}

func TestMalformedFile(t *testing.T) {
	l := layout(t)
	if err := l.Make(); err != nil {
		t.Fatal(err)
	}
	for _, b := range []string{`{`, `{"cpu": 2}`, `{"memory":"1g"}`} {
		if err := os.WriteFile(l.ConfigFile(), []byte(b), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := config.Load(l, config.ThisHost())
		if !errdefs.Is(err, errdefs.Invalid) || !strings.Contains(err.Error(), filepath.Base(l.ConfigFile())) {
			t.Errorf("%s: %v", b, err)
		}
	}
}
