package main

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// debianPackage is where files of this machine come from.
type debianPackage struct{ name, version, arch string }

const certificates = "/etc/ssl/certs/ca-certificates.crt"

// collectorFiles are those of the collector's image: the programs, the
// libraries they are linked with, and the authorities of certificates.
func collectorFiles(ctx context.Context, programs []string) ([]file, []debianPackage, error) {
	files := append(base(),
		file{path: "/var", mode: 0o755}, file{path: "/var/lib", mode: 0o755},
		file{path: "/var/lib/flowaudit", mode: 0o750, owner: nobody},
		file{path: "/etc/nsswitch.conf", mode: 0o644, content: []byte("hosts: files dns\n")},
	)
	needed := map[string]bool{certificates: true}
	for _, p := range programs {
		files = append(files, file{path: "/" + filepath.Base(p), mode: 0o755, from: p})
		if err := libraries(p, needed); err != nil {
			return nil, nil, err
		}
	}
	packages := make(map[debianPackage]bool)
	for path := range needed {
		p, err := owner(ctx, path)
		if err != nil {
			return nil, nil, err
		}
		packages[p] = true
		files = append(files, file{path: path, mode: 0o755, from: path})
		if path == certificates {
			files[len(files)-1].mode = 0o644
		}
	}
	var all []debianPackage
	for p := range packages {
		all = append(all, p)
		// The licences ask for their text to come along.
		copyright := "/usr/share/doc/" + p.name + "/copyright"
		files = append(files, file{path: copyright, mode: 0o644, from: copyright})
	}
	slices.SortFunc(all, func(a, b debianPackage) int { return strings.Compare(a.name, b.name) })
	return append(files, directories(files)...), all, nil
}

// directories are those that files lie in and nobody has named.
func directories(files []file) []file {
	known := make(map[string]bool)
	for _, f := range files {
		known[f.path] = true
	}
	var out []file
	for _, f := range files {
		for dir := filepath.Dir(f.path); dir != "/" && !known[dir]; dir = filepath.Dir(dir) {
			known[dir] = true
			out = append(out, file{path: dir, mode: 0o755})
		}
	}
	return out
}

// libraries adds to needed what a program is linked with, the loader too, by
// the paths that the loader looks at.
func libraries(path string, needed map[string]bool) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			interpreter := make([]byte, p.Filesz-1) // without the NUL at its end
			if _, err := p.ReadAt(interpreter, 0); err != nil {
				return fmt.Errorf("read the loader of %s: %w", path, err)
			}
			needed[string(interpreter)] = true
		}
	}
	names, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("read the libraries of %s: %w", path, err)
	}
	for _, name := range names {
		library, err := find(name)
		if err != nil {
			return err
		}
		if needed[library] {
			continue
		}
		needed[library] = true
		if err := libraries(library, needed); err != nil {
			return err
		}
	}
	return nil
}

// find finds a library where Debian keeps those of this architecture.
func find(name string) (string, error) {
	for _, pattern := range []string{"/lib/*-linux-gnu*/", "/lib64/"} {
		found, err := filepath.Glob(pattern + name)
		if err != nil {
			return "", err
		}
		if len(found) > 0 {
			return found[0], nil
		}
	}
	return "", fmt.Errorf("library %s is not where Debian keeps libraries", name)
}

// owner is the package that a file belongs to.
func owner(ctx context.Context, path string) (debianPackage, error) {
	if path == certificates { // made when the package is installed
		return describe(ctx, "ca-certificates")
	}
	// Since /usr was merged, packages list their files under either path.
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return debianPackage{}, err
	}
	for _, p := range []string{path, real, strings.TrimPrefix(real, "/usr")} {
		out, err := exec.CommandContext(ctx, "dpkg", "-S", p).Output()
		if name, _, ok := strings.Cut(string(out), ": "); err == nil && ok {
			return describe(ctx, name)
		}
	}
	return debianPackage{}, fmt.Errorf("%s is of no Debian package: images are made on Debian", path)
}

func describe(ctx context.Context, name string) (debianPackage, error) {
	out, err := exec.CommandContext(ctx, "dpkg-query", "-W", "-f", "${Package}\t${Version}\t${Architecture}", name).Output()
	fields := strings.Split(string(out), "\t")
	if err != nil || len(fields) != 3 {
		return debianPackage{}, errors.Join(fmt.Errorf("ask for the version of the Debian package %s", name), err)
	}
	if _, err := os.Stat("/usr/share/doc/" + fields[0] + "/copyright"); err != nil {
		return debianPackage{}, fmt.Errorf("the licence of the Debian package %s is not installed: %w", name, err)
	}
	return debianPackage{fields[0], fields[1], fields[2]}, nil
}
