# split_words ARRAY TEXT MESSAGE: put the words of a text into an array, quoted as in a shell, and
# nothing of it executed; a blank text has none. Where a quote is not closed, the script ends with the
# message.
split_words() {
    if ! printf '%s' "$2" | xargs -r -n1 >/dev/null; then
        printf 'error: %s\n' "$3" >&2
        exit 2
    fi
    mapfile -d '' -t "$1" < <(printf '%s' "$2" | xargs -r -n1 printf '%s\0')
}
