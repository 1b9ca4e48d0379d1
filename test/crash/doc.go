// Package crash tests that flows count once, whoever is killed on their way into ClickHouse.
package crash
