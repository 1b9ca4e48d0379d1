package other

import (
	"errors"
	"fmt"
	"strings"
)

// parseCalico reads a selector of Calico; the empty one selects everything.
//
//	or      = and { "||" and }
//	and     = not { "&&" not }
//	not     = { "!" } term
//	term    = "(" or ")" | "all()" | "global()" | "has(" label ")" | label test
//	test    = ( "==" | "!=" | "contains" | "starts with" | "ends with" ) string
//	        | ( "in" | "not in" ) "{" [ string { "," string } ] "}"
func parseCalico(text string, v view) (expression, error) {
	p := &calicoParser{text: text, view: v}
	p.space()
	if p.at == len(text) {
		return all(), nil
	}
	e, err := p.or()
	if err == nil && p.at < len(text) {
		err = errors.New("more text than a selector")
	}
	if err != nil {
		return nil, fmt.Errorf("selector %q, at %d: %w", text, p.at+1, err)
	}
	return e, nil
}

// maxNesting bounds parentheses and negations within each other.
const maxNesting = 100

type calicoParser struct {
	text  string
	at    int
	depth int
	view  view
}

func (p *calicoParser) space() {
	p.at = len(p.text) - len(strings.TrimLeft(p.text[p.at:], " \t\r\n"))
}

// take goes over a text, if it comes next.
func (p *calicoParser) take(token string) bool {
	if !strings.HasPrefix(p.text[p.at:], token) {
		return false
	}
	p.at += len(token)
	p.space()
	return true
}

// words goes over words, if they come next. Calico wants no space between them.
func (p *calicoParser) words(words ...string) bool {
	before := p.at
	for _, w := range words {
		if !p.take(w) {
			p.at = before
			return false
		}
	}
	return true
}

// label goes over a label's name; "" if none comes next.
func (p *calicoParser) label() string {
	end := p.at
	for end < len(p.text) && isLabel(p.text[end]) {
		end++
	}
	name := p.text[p.at:end]
	p.at = end
	p.space()
	return name
}

func isLabel(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '.' || c == '/' || c == '-'
}

func (p *calicoParser) or() (expression, error)  { return p.list("||", anyOf, p.and) }
func (p *calicoParser) and() (expression, error) { return p.list("&&", all, p.not) }

func (p *calicoParser) list(separator string, join func(...expression) expression, part func() (expression, error)) (expression, error) {
	var parts []expression
	for {
		e, err := part()
		if err != nil {
			return nil, err
		}
		parts = append(parts, e)
		if !p.take(separator) {
			break
		}
	}
	if len(parts) == 1 {
		return parts[0], nil
	}
	return join(parts...), nil
}

func (p *calicoParser) not() (expression, error) {
	negated := false
	for p.take("!") {
		negated = !negated
	}
	e, err := p.term()
	if err == nil && negated {
		e = not(e)
	}
	return e, err
}

func (p *calicoParser) term() (expression, error) {
	if p.take("(") {
		if p.depth++; p.depth > maxNesting {
			return nil, errors.New("too many parentheses within each other")
		}
		e, err := p.or()
		p.depth--
		if err == nil && !p.take(")") {
			err = errors.New(`want ")"`)
		}
		return e, err
	}
	key := p.label()
	if key == "" {
		return nil, errors.New("want a label")
	}
	if !p.take("(") {
		return p.test(key)
	}
	return p.function(key)
}

func (p *calicoParser) function(name string) (e expression, err error) {
	switch name {
	case "all":
		e = all()
	case "global":
		e = func(*Pod) truth { return no } // what is in no namespace
	case "has":
		key := p.label()
		if key == "" {
			return nil, errors.New("want a label")
		}
		e = has(p.view, key)
	default:
		return nil, fmt.Errorf("%s() is not known", name)
	}
	if !p.take(")") {
		return nil, errors.New(`want ")"`)
	}
	return e, nil
}

func (p *calicoParser) test(key string) (expression, error) {
	switch {
	case p.words("not", "in"):
		values, err := p.set()
		return not(in(p.view, key, values)), err
	case p.words("in"):
		values, err := p.set()
		return in(p.view, key, values), err
	}
	var test func(value, want string) bool
	negated := false
	switch {
	case p.take("=="):
		test = func(value, want string) bool { return value == want }
	case p.take("!="):
		test, negated = func(value, want string) bool { return value == want }, true
	case p.words("contains"):
		test = strings.Contains
	case p.words("starts", "with"):
		test = strings.HasPrefix
	case p.words("ends", "with"):
		test = strings.HasSuffix
	default:
		return nil, errors.New("want ==, !=, in, not in, contains, starts with or ends with")
	}
	want, err := p.quoted()
	e := holds(p.view, key, func(value string) bool { return test(value, want) })
	if negated {
		e = not(e)
	}
	return e, err
}

func (p *calicoParser) set() (values []string, err error) {
	if !p.take("{") {
		return nil, errors.New(`want "{"`)
	}
	for !p.take("}") {
		if len(values) > 0 && !p.take(",") {
			return nil, errors.New(`want "," or "}"`)
		}
		value, err := p.quoted()
		if err != nil {
			return nil, err
		}
		values = append(values, value)
	}
	return values, nil
}

func (p *calicoParser) quoted() (string, error) {
	if p.at == len(p.text) || p.text[p.at] != '\'' && p.text[p.at] != '"' {
		return "", errors.New("want a text in quotes")
	}
	value, _, ok := strings.Cut(p.text[p.at+1:], p.text[p.at:p.at+1])
	if !ok {
		return "", errors.New("the quote has no end")
	}
	p.at += len(value) + 2
	p.space()
	return value, nil
}
