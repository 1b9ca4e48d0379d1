// Package manual makes manual pages of what programs print with --help.
package manual

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Page makes a page of section 1 or 8 in roff: of a name such as
// flowaudit-observe, what it does in a line, and its help.
func Page(name string, section int, short, help string) string {
	var b strings.Builder
	fmt.Fprintf(&b, ".TH %s %d \"\" flowaudit\n.nh\n.ad l\n.SH NAME\n%s \\- %s\n", strings.ToUpper(escape(name)), section, escape(name), escape(short))
	description, rest := split(help)
	b.WriteString(".SH DESCRIPTION\n" + prose(description))
	for _, s := range rest {
		fmt.Fprintf(&b, ".SH %s\n", strings.ToUpper(s.title))
		if strings.HasSuffix(s.title, "Flags") {
			b.WriteString(flags(s.lines))
			continue
		}
		b.WriteString(".nf\n" + verbatim(s.lines) + ".fi\n")
	}
	return b.String()
}

// part is what follows a heading of the help.
type part struct {
	title string
	lines []string
}

// split divides a help at its headings, such as "Flags:".
func split(help string) (before []string, parts []part) {
	heading := regexp.MustCompile(`^[A-Z][A-Za-z ]*:$`)
	for _, line := range strings.Split(strings.TrimSpace(help), "\n") {
		switch {
		case heading.MatchString(line):
			parts = append(parts, part{title: strings.TrimSuffix(line, ":")})
		case len(parts) == 0:
			before = append(before, line)
		case strings.HasPrefix(line, `Use "`): // where to find more help: a page has it all
		default:
			p := &parts[len(parts)-1]
			p.lines = append(p.lines, line)
		}
	}
	return before, parts
}

// prose writes paragraphs; indented lines stand as they are.
func prose(lines []string) string {
	var b strings.Builder
	for _, line := range lines {
		switch {
		case strings.TrimSpace(line) == "":
			b.WriteString(".PP\n")
		case strings.HasPrefix(line, "  "):
			b.WriteString(".nf\n" + guard(escape(line)) + "\n.fi\n")
		default:
			b.WriteString(guard(escape(line)) + "\n")
		}
	}
	return b.String()
}

func verbatim(lines []string) string {
	var b strings.Builder
	for _, line := range trim(lines) {
		b.WriteString(guard(escape(line)) + "\n")
	}
	return b.String()
}

// flags writes each flag and what it does.
func flags(lines []string) string {
	flag := regexp.MustCompile(`^ +((?:-\w, )?--[\w-]+)( \S+)? {2,}(.*)$`)
	var b strings.Builder
	for _, line := range trim(lines) {
		if f := flag.FindStringSubmatch(line); f != nil {
			fmt.Fprintf(&b, ".TP\n\\fB%s\\fR", escape(f[1]))
			if f[2] != "" {
				fmt.Fprintf(&b, " \\fI%s\\fR", escape(strings.TrimSpace(f[2])))
			}
			b.WriteString("\n" + guard(escape(f[3])) + "\n")
			continue
		}
		b.WriteString(guard(escape(strings.TrimSpace(line))) + "\n")
	}
	return b.String()
}

// trim leaves out empty lines around.
func trim(lines []string) []string {
	return strings.Split(strings.Trim(strings.Join(lines, "\n"), "\n"), "\n")
}

func escape(s string) string {
	return strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
}

// guard keeps a line from being taken for a request.
func guard(s string) string {
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		return `\&` + s
	}
	return s
}

// Golden compares a page with its file, or writes it if update says so.
func Golden(t *testing.T, dir, name string, section int, short, help string, update bool) {
	t.Helper()
	path := filepath.Join(dir, fmt.Sprintf("%s.%d", name, section))
	page := Page(name, section, short, help)
	if update {
		if err := os.WriteFile(path, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if old, err := os.ReadFile(path); err != nil || string(old) != page {
		t.Errorf("%s is not what --help says: run make generate (%v)", path, err)
	}
}
