package follow

import (
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// candidate is a file that may hold lines of the log.
type candidate struct {
	path    string
	id      fileID
	size    int64
	changed time.Time
	main    bool // by the log's own name, not a rotated one's
}

// candidates lists the files of a log, the oldest first: those by its name or
// pattern, and beside them what rotation has named after them.
func candidates(pattern string) ([]candidate, error) {
	paths := []string{pattern}
	if isPattern(pattern) {
		var err error
		if paths, err = filepath.Glob(pattern); err != nil {
			return nil, err
		}
	}
	var out []candidate
	seen := make(map[fileID]bool)
	add := func(path string, main bool) {
		info, err := os.Stat(path)
		if err != nil || !info.Mode().IsRegular() || seen[idOf(info)] {
			return
		}
		seen[idOf(info)] = true
		out = append(out, candidate{path, idOf(info), info.Size(), info.ModTime(), main})
	}
	for _, p := range paths {
		add(p, true)
	}
	for _, p := range paths {
		// The runtime's links lead to where the rotated files are.
		if real, err := filepath.EvalSymlinks(p); err == nil {
			p = real
		}
		entries, err := os.ReadDir(filepath.Dir(p))
		if err != nil {
			continue
		}
		for _, e := range entries {
			if rotated(filepath.Base(p), e.Name()) {
				add(filepath.Join(filepath.Dir(p), e.Name()), false)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b candidate) int {
		return cmp.Or(a.changed.Compare(b.changed), cmp.Compare(rank(a), rank(b)))
	})
	return out, nil
}

// rank puts the log itself behind what was rotated at the same moment.
func rank(c candidate) int {
	if c.main {
		return 1
	}
	return 0
}

func isPattern(s string) bool { return strings.ContainsAny(s, `*?[`) }

// rotated reports whether a name is the log's after rotation: np.log.1,
// np.log-20260101 (logrotate), 0.log.20260101-120000 (kubelet),
// np-2026-01-01T12-00-00.000.log (lumberjack). What is compressed cannot be
// read on from a place.
func rotated(base, name string) bool {
	switch filepath.Ext(name) {
	case ".gz", ".bz2", ".xz", ".zst", ".tmp", ".new", ".swp":
		return false
	}
	if strings.HasPrefix(name, base+".") || strings.HasPrefix(name, base+"-") {
		return true
	}
	ext := filepath.Ext(base)
	stem := strings.TrimSuffix(base, ext)
	return ext != "" && stem != "" && strings.HasPrefix(name, stem+"-") && strings.HasSuffix(name, ext)
}
