package archtest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "dhow"

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

type pkg struct {
	ImportPath   string
	Name         string
	Dir          string
	Imports      []string
	TestImports  []string
	XTestImports []string
	Error        *struct{ Err string }
}

// list returns the module's packages as they are on goos.
func list(t *testing.T, goos string) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Name,Dir,Imports,TestImports,XTestImports,Error", "./...")
	cmd.Dir = root(t)
	cmd.Env = append(os.Environ(), "GOOS="+goos, "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var pkgs []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

// rule forbids packages below From to import packages below To. Except are
// importers that may.
type rule struct {
	From, To string
	Except   []string
	Why      string
}

var parts = []string{"guest/store", "guest/runtime", "guest/network", "guest/volume", "guest/builder"}

func rules() []rule {
	r := []rule{
		{From: "host", To: "guest", Why: "host and guest meet only in proto/control: they are built for different systems and replaced at different times"},
		{From: "guest", To: "host", Why: "host and guest meet only in proto/control"},
		{From: "proto", To: "", Why: "the contract belongs to neither side"},
		{From: "internal", To: "host", Why: "internal is below both sides"},
		{From: "internal", To: "guest", Why: "internal is below both sides"},
		{From: "guest/event", To: "guest", Why: "the event bus is a leaf"},
		{From: "guest/boot", To: "guest", Why: "PID 1 must stay tiny: nothing of the engine in it"},
		{From: "guest/runtime/enter", To: "guest/runtime/cgroup", Why: "dhow-enter must stay tiny: what the runtime precomputes does not belong in it"},
		{From: "host/vm", To: "host/daemon", Why: "a driver does not know who drives it"},
		{From: "host/cli", To: "host/vm", Why: "the CLI reaches the machine only through host/client"},
		{From: "host/cli", To: "host/daemon", Why: "the CLI reaches the machine only through host/client"},
	}
	for _, a := range parts {
		for _, b := range parts {
			if a != b {
				r = append(r, rule{From: a, To: b, Why: "the parts of the engine meet only through interfaces that the engine declares"})
			}
		}
		r = append(r,
			rule{From: a, To: "guest/engine", Why: "a part does not know its user"},
			rule{From: a, To: "guest/api", Why: "a part does not know its user"},
			rule{From: "guest/api", To: a, Why: "the API asks the engine, never a part"},
		)
	}
	return r
}

func below(path, dir string) bool {
	if dir == "" {
		return path == module || strings.HasPrefix(path, module+"/")
	}
	return path == module+"/"+dir || strings.HasPrefix(path, module+"/"+dir+"/")
}

func TestImports(t *testing.T) {
	for _, goos := range []string{"linux", "darwin", "windows"} {
		for _, p := range list(t, goos) {
			for _, r := range rules() {
				if !below(p.ImportPath, r.From) || slices.ContainsFunc(r.Except, func(e string) bool { return below(p.ImportPath, e) }) {
					continue
				}
				for _, imp := range p.Imports {
					if below(imp, r.To) && !below(imp, r.From) {
						t.Errorf("%s: %s imports %s: %s", goos, p.ImportPath, imp, r.Why)
					}
				}
			}
		}
	}
}

// Implementations are wired together in two places only.
func TestOnlyCompositionRootsImportImplementations(t *testing.T) {
	roots := map[string][]string{
		// implementation: who may import it besides what is below it
		"host/vm/qemu":        {"host/daemon", "build/bench"},
		"host/vm/vz":          {"host/daemon"},
		"host/usernet":        {"host/daemon", "build/bench"},
		"host/egress":         {"host/daemon"},
		"host/proxy":          {"host/daemon"},
		"host/link":           {"host/daemon"},
		"host/image":          {"host/daemon"},
		"guest/api":           {"guest/agent"},
		"guest/control":       {"guest/agent"},
		"guest/network/apply": {"guest/network"},
		"host/daemon":         {"cmd/dhowd"},
		"guest/agent":         {"cmd/dhow-agent"},
		"guest/boot":          {"cmd/dhow-init"},
	}
	for _, goos := range []string{"linux", "darwin", "windows"} {
		for _, p := range list(t, goos) {
			for _, imp := range p.Imports {
				for dir, who := range roots {
					if below(imp, dir) && !below(p.ImportPath, dir) && !slices.ContainsFunc(who, func(w string) bool { return below(p.ImportPath, w) }) {
						t.Errorf("%s: %s imports %s: only %v may", goos, p.ImportPath, imp, who)
					}
				}
			}
		}
	}
}

// A small program's start is paid at every container start, so what it imports
// is a budget.
func TestTinyProgramsImportLittle(t *testing.T) {
	for cmd, heavy := range map[string][]string{
		"./cmd/dhow-enter": {"net", "net/http", "encoding/json", "fmt", "log/slog"},
		"./cmd/dhow-init":  {"net/http", "crypto/tls", "github.com/vishvananda/netlink"},
	} {
		c := exec.Command("go", "list", "-deps", cmd)
		c.Dir = root(t)
		c.Env = append(os.Environ(), "GOOS=linux", "CGO_ENABLED=0")
		out, err := c.Output()
		if err != nil {
			t.Fatalf("go list -deps %s: %v", cmd, err)
		}
		deps := strings.Fields(string(out))
		for _, h := range heavy {
			if slices.Contains(deps, h) {
				t.Errorf("%s depends on %s, which costs start time", cmd, h)
			}
		}
	}
}

func TestGuestIsLinuxOnlyAndTheRestIsNot(t *testing.T) {
	for _, goos := range []string{"darwin", "windows"} {
		for _, p := range list(t, goos) {
			if below(p.ImportPath, "guest") && len(p.Imports) > 0 && slices.ContainsFunc(p.Imports, func(i string) bool { return i == "golang.org/x/sys/unix" }) {
				t.Errorf("%s: %s uses Linux's calls outside Linux: it needs a build constraint", goos, p.ImportPath)
			}
			hostSide := below(p.ImportPath, "host") || below(p.ImportPath, "proto") || below(p.ImportPath, "internal")
			if hostSide && p.Error != nil {
				t.Errorf("%s does not list on %s: %s", p.ImportPath, goos, p.Error.Err)
			}
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for _, p := range list(t, "linux") {
		if !below(p.ImportPath, "") || below(p.ImportPath, "cmd") {
			continue
		}
		name := filepath.Join(p.Dir, "doc.go")
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments|parser.PackageClauseOnly)
		if errors.Is(err, fs.ErrNotExist) {
			if p.Name == "main" {
				continue
			}
			if below(p.ImportPath, "internal/version") {
				continue // one file, documented there
			}
		}
		if err != nil {
			t.Errorf("%s: %v", p.ImportPath, err)
		} else if f.Doc == nil || len(f.Doc.Text()) < 40 {
			t.Errorf("%s: doc.go says nothing of what the package is", p.ImportPath)
		}
	}
}

func TestNoCatchAllPackages(t *testing.T) {
	for _, p := range list(t, "linux") {
		switch filepath.Base(p.ImportPath) {
		case "util", "utils", "common", "helpers", "helper", "types", "misc", "shared":
			t.Errorf("%s: a package is named for what it is", p.ImportPath)
		}
	}
}

func TestTopLevelIsFixed(t *testing.T) {
	allowed := []string{"cmd", "host", "guest", "vmimage", "proto", "build", "internal", "test", "docs", "go.mod", "go.sum", "Makefile",
		"README.md", "LICENSE", "CONTRIBUTING.md", ".ci", ".git", ".gitignore", ".golangci.yml", "bin", ".cache", "dist"}
	ents, err := os.ReadDir(root(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range ents {
		if !slices.Contains(allowed, e.Name()) {
			t.Errorf("%s: the top level holds only %v", e.Name(), allowed)
		}
	}
}

var inDocs = regexp.MustCompile("`([a-zA-Z0-9_./-]+\\.go)(?::([A-Za-z0-9_.]+))?`")

var link = regexp.MustCompile(`\]\(([^)#:]+\.md)\)`) // to a page of ours

// Documentation that names a file, or a function in a file as `path/file.go:Name`,
// must be true.
func TestFilesAndFunctionsNamedInTheDocsExist(t *testing.T) {
	dir := root(t)
	docs, err := filepath.Glob(filepath.Join(dir, "docs", "*", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob(filepath.Join(dir, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	named := 0
	for _, doc := range append(append(docs, more...), filepath.Join(dir, "README.md"), filepath.Join(dir, "CONTRIBUTING.md")) {
		f, err := os.Open(doc)
		if err != nil {
			t.Error(err)
			continue
		}
		defer f.Close()
		s := bufio.NewScanner(f)
		for line := 1; s.Scan(); line++ {
			for _, m := range link.FindAllStringSubmatch(s.Text(), -1) {
				if _, err := os.Stat(filepath.Join(filepath.Dir(doc), m[1])); err != nil {
					t.Errorf("%s:%d: %v", doc, line, err)
				}
			}
			for _, m := range inDocs.FindAllStringSubmatch(s.Text(), -1) {
				named++
				if err := check(filepath.Join(dir, m[1]), m[2]); err != nil {
					t.Errorf("%s:%d: %v", doc, line, err)
				}
			}
		}
	}
	if named == 0 {
		t.Error("the documentation names no file: the pattern is wrong, or the documentation is gone")
	}
}

// check reports whether the Go file declares name ("" for any), a function, a
// type, or "Type.Method".
func check(file, name string) error {
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	if name == "" {
		return nil
	}
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			full := d.Name.Name
			if d.Recv != nil {
				full = receiver(d.Recv.List[0].Type) + "." + full
			}
			if full == name {
				return nil
			}
		case *ast.GenDecl:
			for _, s := range d.Specs {
				if ts, ok := s.(*ast.TypeSpec); ok && ts.Name.Name == name {
					return nil
				}
			}
		}
	}
	return fmt.Errorf("%s declares no %s", file, name)
}

func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return "?"
}
