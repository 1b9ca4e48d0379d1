package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// groupPrefix begins the names of machines' cgroups; the maker's pid follows.
const groupPrefix = "flowaudit-machine-"

// MakeCgroups makes a group for a machine in every hierarchy of this one.
func MakeCgroups(machine string) ([]Cgroup, error) {
	all, err := hierarchies()
	if err != nil {
		return nil, err
	}
	for i := range all {
		parent := all[i].Path
		all[i].Path = filepath.Join(parent, fmt.Sprintf("%s%d-%s", groupPrefix, os.Getpid(), machine))
		if err := os.MkdirAll(all[i].Path, 0o755); err != nil {
			return nil, fmt.Errorf("make a cgroup: %w", err)
		}
		if err := all[i].prepare(parent); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// prepare gives a new group what its processes need.
func (g Cgroup) prepare(parent string) error {
	switch {
	case g.Type == "cgroup2":
		return delegate(parent)
	case strings.Contains(g.Options, "cpuset"): // empty, and nothing can run in it
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
			b, err := os.ReadFile(filepath.Join(parent, name))
			if err != nil {
				return fmt.Errorf("read a cgroup's CPUs: %w", err)
			}
			if err := os.WriteFile(filepath.Join(g.Path, name), b, 0); err != nil {
				return fmt.Errorf("set a cgroup's CPUs: %w", err)
			}
		}
	}
	return nil
}

// delegate lets the groups below one use its controllers.
func delegate(group string) error {
	b, err := os.ReadFile(filepath.Join(group, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("read a cgroup's controllers: %w", err)
	}
	for _, controller := range strings.Fields(string(b)) {
		if err := os.WriteFile(filepath.Join(group, "cgroup.subtree_control"), []byte("+"+controller), 0); err != nil {
			return fmt.Errorf("delegate the controller %s: %w", controller, err)
		}
	}
	return nil
}

// Remove removes a group and those below it. Its processes must be gone.
func (g Cgroup) Remove() error {
	var groups []string
	err := filepath.WalkDir(g.Path, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			groups = append(groups, path)
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list cgroups: %w", err)
	}
	for _, path := range slices.Backward(groups) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove a cgroup: %w", err)
		}
	}
	return nil
}

// Sweep removes groups whose maker does not run any more.
func Sweep() error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, g := range all {
		old, err := filepath.Glob(filepath.Join(g.Path, groupPrefix+"*"))
		if err != nil {
			return fmt.Errorf("list cgroups: %w", err)
		}
		for _, path := range old {
			pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(path), groupPrefix), "-")
			if _, err := os.Stat("/proc/" + pid); !errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err := (Cgroup{Path: path}).Remove(); err != nil {
				return err
			}
		}
	}
	return nil
}

// hierarchies are those of this machine. Path is the group below which others
// can be made.
func hierarchies() ([]Cgroup, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("list cgroups: %w", err)
	}
	return parseHierarchies(string(mounts), string(own))
}

// parseHierarchies reads proc(5)'s mountinfo and cgroup. Where there are
// version 1 hierarchies, they have the controllers, and are taken.
func parseHierarchies(mounts, own string) ([]Cgroup, error) {
	var v1, v2 []Cgroup
	for line := range strings.Lines(mounts) {
		before, after, _ := strings.Cut(line, " - ")
		mount, file := strings.Fields(before), strings.Fields(after)
		if len(mount) < 5 || len(file) < 3 {
			return nil, fmt.Errorf("read mounts: no mount: %q", line)
		}
		g := Cgroup{Type: file[0], Mount: mount[4]}
		switch g.Type {
		case "cgroup2": // processes may be where others are made in the root only
			g.Path = g.Mount
			v2 = append(v2, g)
		case "cgroup":
			name := controllers(file[2])
			g.Options = name
			if strings.HasPrefix(name, "name=") {
				g.Options = "none," + name
			}
			g.Path = filepath.Join(g.Mount, strings.TrimPrefix(group(own, name), mount[3]))
			v1 = append(v1, g)
		}
	}
	switch {
	case len(v1) > 0:
		return v1, nil
	case len(v2) == 1:
		return v2, nil
	}
	return nil, errors.New("find cgroups: none are mounted")
}

// controllers leaves of a mount's options what says which hierarchy it is.
func controllers(options string) string {
	words := slices.DeleteFunc(strings.Split(options, ","), func(w string) bool {
		return slices.Contains([]string{"rw", "ro", "xattr", "clone_children", "noprefix", "cpuset_v2_mode"}, w) || strings.HasPrefix(w, "release_agent=")
	})
	return strings.Join(words, ",")
}

// group is the calling process' group in a hierarchy.
func group(own, name string) string {
	for line := range strings.Lines(own) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 && f[1] == name {
			return f[2]
		}
	}
	return "/"
}
