<!doctype html>
<meta charset="utf-8">
<title>Orders</title>
<h1>Who are you?</h1>
<ul>
    @foreach ($users as $user)
        <li><a href="/login/{{ $user->id }}">{{ $user->name }}</a></li>
    @endforeach
</ul>
