# shellcheck shell=bash
# Functions that the scripts here source. Options are always --name=value.

# usage: prints the comment at the head of the running script.
usage() { awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"; }

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# whole NAME VALUE: fails unless an option is a whole number (0 or more).
whole() { [[ $2 =~ ^[0-9]+$ ]] || fail "$1=$2 must be a whole number"; }

# quote ARG...: prints one line that a shell reads back as the same arguments.
quote() {
  local arg rest line=
  for arg; do
    if [[ ! $arg =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
      rest=$arg arg=
      while [[ $rest == *\'* ]]; do
        arg+="${rest%%\'*}'\\''"
        rest=${rest#*\'}
      done
      arg="'$arg$rest'"
    fi
    line+="${line:+ }$arg"
  done
  printf '%s\n' "$line"
}

# run COMMAND...: runs it, or prints it under --dry-run.
run() {
  if [ -n "${dry_run:-}" ]; then
    quote "$@"
  else
    "$@"
  fi
}
