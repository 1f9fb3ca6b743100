package qemu

import (
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dhow/host/vm"
)

var update = flag.Bool("update", false, "write testdata anew")

func TestArgs(t *testing.T) {
	full := vm.Config{
		Name: "a,b", Dir: "/run/m", Kernel: "/image/kernel", Initrd: "/image/initrd", Root: "/image/root,1.erofs", Cmdline: "quiet panic=1",
		DataDisk: "/home/u/data.img", CPUs: 2, Memory: 2 << 30, MAC: "5a:94:ef:e4:0c:ee", NetSocket: "/run/m/net,1.sock",
		Log: slog.New(slog.DiscardHandler),
	}
	bare := full
	bare.Root, bare.DataDisk, bare.MAC, bare.NetSocket = "", "", "", ""
	base := plan{arch: "amd64", initrd: "/run/m/initrd", vsock: "/run/m/vsock.sock", qmpFD: 3, firmware: "/usr/share/qemu/qboot.rom"}
	for name, change := range map[string]func(*plan){
		"amd64-kvm": func(p *plan) { p.cfg, p.accel.name = full, "kvm" },
		"amd64-tcg": func(p *plan) { p.cfg, p.accel.name = full, "tcg" },
		"arm64-tcg": func(p *plan) { p.cfg, p.accel.name, p.arch, p.firmware = full, "tcg", "arm64", "" },
		"arm64-kvm": func(p *plan) { p.cfg, p.accel.name, p.arch, p.firmware = bare, "kvm", "arm64", "" },
		"bare":      func(p *plan) { p.cfg, p.accel.name, p.firmware, p.noSandbox = bare, "tcg", "", true },
	} {
		p := base
		change(&p)
		// One option per line, as one reads them.
		got := strings.ReplaceAll(strings.Join(args(p), " "), " -", "\n-") + "\n"
		file := filepath.Join("testdata", name+".args")
		if *update {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s differs from %s (-update writes it):\n%s", name, file, got)
		}
	}
}

func TestConfigParametersComeAfterTheDrivers(t *testing.T) {
	p := plan{cfg: vm.Config{Cmdline: "panic=7"}, arch: "amd64", accel: acceleration{name: "tcg"}}
	if c := cmdline(p); strings.LastIndex(c, "panic=7") < strings.LastIndex(c, "panic=-1") {
		t.Errorf("%q: the kernel takes the last", c)
	}
}
