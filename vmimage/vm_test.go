package vmimage

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"dhow/internal/testkit"
	"dhow/proto/control"
)

// needVM is testkit.VM, and the programs that the test runs.
func needVM(t *testing.T, tools ...string) {
	t.Helper()
	testkit.VM(t)
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is missing: run `make deps`", tool)
		}
	}
}

// testImage builds an image with the stub agent, once per architecture.
var testImages sync.Map // arch → func() (string, error)

func testImage(t *testing.T, arch string) string {
	t.Helper()
	f, _ := testImages.LoadOrStore(arch, sync.OnceValues(func() (string, error) {
		dir := filepath.Join(imageDir, arch)
		stub := filepath.Join(imageDir, "stub-"+arch)
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", stub, "./testdata/stubagent")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("stub agent: %w: %s", err, out)
		}
		_, err := Build(t.Context(), Options{
			Arch: arch, Version: "test", Out: dir, Cache: filepath.Join("..", ".cache", "vmimage"), Module: "..", Log: os.Stderr,
			Programs: map[string]string{"dhow-agent": stub, "dhow-enter": stub},
		})
		return dir, err
	}))
	dir, err := f.(func() (string, error))()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

var imageDir string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "dhow-vmimage-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	imageDir = dir
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// A testVM is a booted machine.
type testVM struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines chan string
	log   []string
}

// boot starts the image in QEMU with that data disk; machine tells the stub
// agent what to do.
func boot(t *testing.T, arch, machine, data string) *testVM {
	t.Helper()
	img := testImage(t, arch)
	m, err := loadManifest(img)
	if err != nil {
		t.Fatal(err)
	}
	file, err := json.Marshal(control.Boot{
		Protocol: control.Protocol, Version: "test", Key: make([]byte, control.KeySize), Machine: machine, Time: time.Now(),
		Network: &control.Network{MAC: "5a:94:ef:e4:0c:ee", Address: "192.168.127.2/24", Gateway: "192.168.127.1", DNS: "192.168.127.1", MTU: 1400},
	})
	if err != nil {
		t.Fatal(err)
	}
	initrd, err := os.ReadFile(filepath.Join(img, "initrd"))
	if err != nil {
		t.Fatal(err)
	}
	buf := bytes.NewBuffer(initrd)
	if err := (tree{"boot.json": {mode: 0o600, data: file}}).writeCPIO(buf); err != nil {
		t.Fatal(err)
	}
	initrdFile := filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(initrdFile, buf.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	qemu, args := "qemu-system-x86_64", []string{"-machine", "pc", "-cpu", "max"}
	cmdline := "console=ttyS0 no_timer_check "
	if arch == "arm64" {
		qemu, args = "qemu-system-aarch64", []string{"-machine", "virt", "-cpu", "max,pauth-impdef=on"}
		cmdline = "console=ttyAMA0 "
	}
	args = append(args, "-accel", "tcg,thread=multi", "-smp", "2", "-m", "512M", "-nodefaults", "-no-user-config", "-display", "none",
		"-serial", "stdio", "-monitor", "none", "-no-reboot",
		"-kernel", filepath.Join(img, "kernel"), "-initrd", initrdFile, "-append", cmdline+m.Cmdline,
		"-drive", "if=none,id=r,format=raw,readonly=on,file="+filepath.Join(img, "root.erofs"), "-device", "virtio-blk-pci,drive=r,serial="+control.SerialRoot,
		"-drive", "if=none,id=d,format=raw,discard=unmap,file="+data, "-device", "virtio-blk-pci,drive=d,serial="+control.SerialData,
		"-netdev", "user,id=n,restrict=on", "-device", "virtio-net-pci,netdev=n,mac=5a:94:ef:e4:0c:ee,romfile=")
	cmd := exec.Command(qemu, args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	vm := &testVM{t: t, cmd: cmd, lines: make(chan string, 10000)}
	go func() {
		defer close(vm.lines)
		sc := bufio.NewScanner(out)
		for sc.Scan() {
			vm.lines <- strings.TrimRight(sc.Text(), "\r")
		}
		_, _ = io.Copy(io.Discard, out)
	}()
	t.Cleanup(func() {
		vm.kill()
		if t.Failed() {
			t.Logf("console of %q:\n%s", machine, strings.Join(vm.log, "\n"))
		}
	})
	return vm
}

// bootLimit bounds every wait for a machine.
const bootLimit = 90 * time.Second

// until reads the console to a line that matches, and returns it; to the end
// for "".
func (vm *testVM) until(pattern string) string {
	vm.t.Helper()
	re := regexp.MustCompile(pattern)
	limit := time.After(bootLimit)
	for {
		select {
		case l, ok := <-vm.lines:
			if !ok {
				if pattern != "" {
					vm.t.Fatalf("the machine ended without a line like %q", pattern)
				}
				return ""
			}
			vm.log = append(vm.log, l)
			if pattern != "" && re.MatchString(l) {
				return l
			}
		case <-limit:
			vm.t.Fatalf("no line like %q within %v", pattern, bootLimit)
		}
	}
}

// off waits for the machine's own end and returns the whole console.
func (vm *testVM) off() string {
	vm.t.Helper()
	vm.until("")
	if err := vm.cmd.Wait(); err != nil {
		vm.t.Errorf("QEMU: %v", err)
	}
	return strings.Join(vm.log, "\n")
}

func (vm *testVM) kill() {
	_ = vm.cmd.Process.Kill()
	for l := range vm.lines {
		vm.log = append(vm.log, l)
	}
	_ = vm.cmd.Wait()
}

func want(t *testing.T, console string, patterns ...string) {
	t.Helper()
	for _, p := range patterns {
		if !regexp.MustCompile("(?m)" + p).MatchString(console) {
			t.Errorf("the console has no line like %q", p)
		}
	}
}

func newDisk(t *testing.T, size int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "data.img")
	f, err := os.Create(name)
	if err == nil {
		err = f.Truncate(size)
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// clean reports whether the ext4 file system on the disk was unmounted.
func clean(t *testing.T, disk string) bool {
	t.Helper()
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var sb [1024]byte
	if _, err := f.ReadAt(sb[:], 1024); err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	if le.Uint16(sb[0x38:]) != 0xEF53 {
		t.Fatal("no ext4 on the data disk")
	}
	return le.Uint16(sb[0x3a:]) == 1 && le.Uint32(sb[0x60:])&4 == 0
}

// fsck checks the file system with the system's e2fsck, changing nothing.
func fsck(t *testing.T, disk string) {
	t.Helper()
	if out, err := exec.Command("/sbin/e2fsck", "-f", "-n", disk).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v: %s", err, out)
	}
}

const mib = 1 << 20

// The life of a data disk: formatted, used again, grown, torn, recovered.
func TestVMDataDisk(t *testing.T) {
	needVM(t, "qemu-system-x86_64", "mkfs.erofs")
	disk := newDisk(t, 2048*mib)

	console := boot(t, "amd64", "inspect", disk).off()
	want(t, console,
		`formatting the data disk`,
		`/proc/self/cgroup: "0::/dhow-agent"`, `subtree_control: "[^"]*memory[^"]*pids`, `ip_forward: "1"`, `hostname: "dhow-inspect"`,
		`/run/resolv.conf: "nameserver 192.168.127.1"`, `/etc/resolv.conf: "nameserver 192.168.127.1"`, `oom_score_adj: "-900"`,
		`stat /boot.json .*no such file`, `ca-certificates.crt <nil>`, `busybox.tar <nil>`, `/dev/pts/ptmx <nil>`, `/dev/vsock <nil>`,
		`mount /dev/vda / erofs ro`, `/var/lib/dhow ext4 rw,noatime,discard`, `/sys/fs/cgroup cgroup2`,
		`route .*eth0\\t00000000\\t017FA8C0`, `mtu "1400`,
		`cpus 2$`,
		`modprobe fs-fuse: "" <nil>`, `modprobe fs-nosuch: "" exit status 1`,
		`module virtiofs`, `module overlay`, `module bridge`, `module nft_masq`,
		`steps kernel=\d+,init=\d+,root disk=\d+,root=\d+,mounts=\d+,data disk=\d+,network=\d+,agent=\d+`,
		`dhow-init: stopping`, `Power down`)
	if strings.Contains(console, "panic:") || strings.Contains(console, "dhow-init: module") {
		t.Error("the boot was not clean")
	}
	if !clean(t, disk) {
		t.Error("the data disk was not unmounted at power-off")
	}
	fsck(t, disk)

	console = boot(t, "amd64", "count", disk).off()
	want(t, console, `boots 1, data MiB 19\d\d`)
	if strings.Contains(console, "formatting") || strings.Contains(console, "checking") {
		t.Error("a clean disk was not just mounted")
	}

	if err := os.Truncate(disk, 4096*mib); err != nil {
		t.Fatal(err)
	}
	console = boot(t, "amd64", "count", disk).off()
	want(t, console, `growing the data disk's file system from 2147483648 to 4294967296`, `boots 2, data MiB 39\d\d`)
	fsck(t, disk)

	vm := boot(t, "amd64", "write", disk)
	vm.until(`STUB writing <nil> <nil>`)
	time.Sleep(300 * time.Millisecond) // so that it is in the middle of it
	vm.kill()
	if clean(t, disk) {
		t.Fatal("the disk is clean after the machine was killed: the test does not test")
	}
	console = boot(t, "amd64", "count", disk).off()
	want(t, console, `checking the data disk: its journal has to be replayed`, `e2fsck: .*recovering journal`, `boots 4, data MiB 39\d\d`)
	if !clean(t, disk) {
		t.Error("the data disk was not unmounted at power-off")
	}
	fsck(t, disk)
}

func TestVMForeignDiskIsLeftAlone(t *testing.T) {
	needVM(t, "qemu-system-x86_64", "mkfs.erofs")
	disk := newDisk(t, 64*mib)
	f, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("somebody's data"), 900<<10); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	before := sum(t, disk)
	console := boot(t, "amd64", "count", disk).off()
	want(t, console, `dhow-init: the data disk .* is left untouched, because it holds data`, `STUB data error: the data disk .* left untouched`, `Power down`)
	if sum(t, disk) != before {
		t.Error("the disk was written to")
	}
}

func sum(t *testing.T, name string) [sha256.Size]byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(b)
}

func TestVMAgentIsRestartedAndOrphansAreKept(t *testing.T) {
	needVM(t, "qemu-system-x86_64", "mkfs.erofs")
	disk := newDisk(t, 256*mib)
	console := boot(t, "amd64", "crash", disk).off()
	want(t, console, `orphan <nil>`, `the agent ended with status 3`, `life 2, exits "\d+ 7 0 \d+\\n"`, `Power down`)
	if !clean(t, disk) {
		t.Error("the data disk was not unmounted at power-off")
	}
}

func TestVMArm64(t *testing.T) {
	needVM(t, "qemu-system-aarch64", "mkfs.erofs")
	disk := newDisk(t, 1024*mib)
	console := boot(t, "arm64", "count", disk).off()
	want(t, console, `formatting the data disk`, `boots 1, data MiB 9\d\d`, `Power down`)
	fsck(t, disk)
}

// The same inputs give the same bytes, wherever and whenever they are built.
func TestVMImageIsReproducible(t *testing.T) {
	needVM(t, "mkfs.erofs", "apt-get")
	first := testImage(t, "amd64")
	out := filepath.Join(t.TempDir(), "again")
	stub := filepath.Join(imageDir, "stub-amd64")
	if _, err := Build(t.Context(), Options{
		Arch: "amd64", Version: "test", Out: out, Cache: filepath.Join("..", ".cache", "vmimage"), Module: "..", Log: os.Stderr,
		Programs: map[string]string{"dhow-agent": stub, "dhow-enter": stub},
	}); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(first, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(first, p)
		if err != nil {
			return err
		}
		if sum(t, p) != sum(t, filepath.Join(out, rel)) {
			t.Errorf("%s differs", rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
